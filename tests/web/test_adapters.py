"""Adapters over HTTP: shown with what proves them, deleted by their owner alone."""

from pathlib import Path

import httpx2
import pytest

from mini_claude.data.adapters import AdapterRepository
from mini_claude.services.identity import LOCAL

from .conftest import Site

ADAPTERS = "/api/v1/models/adapters"
CERTIFICATE = {"passed": True, "reason": "All forms agree."}
SOMEBODY_ELSE = "0" * 32


def add(site: Site, *, owner: str = LOCAL.owner) -> Path:
    """The next version of smollm2-135m:bot, certified; its folder."""
    repository = AdapterRepository(site.services.database)
    folder = f"job{len(repository.list())}"
    version = repository.add(owner, "smollm2-135m", "bot", folder, {"metrics": {"eval_loss": 0.5}}, None)
    repository.certify(version, CERTIFICATE)
    path = site.services.settings.adapters_dir / folder
    path.mkdir(parents=True)
    return path


async def test_every_version_is_shown_with_its_certificate(client: httpx2.AsyncClient, site: Site) -> None:
    assert (await client.get(ADAPTERS)).json() == {"adapters": []}
    add(site)
    add(site)
    first, second = (await client.get(ADAPTERS)).json()["adapters"]
    assert [first["reference"], second["reference"]] == ["smollm2-135m:bot@1", "smollm2-135m:bot@2"]
    assert (first["certificate"], first["facts"]["metrics"]) == (CERTIFICATE, {"eval_loss": 0.5})
    assert "folder" not in first
    assert (await client.get(f"{ADAPTERS}/smollm2-135m:bot")).json() == second
    assert (await client.get(f"{ADAPTERS}/smollm2-135m:bot@1")).json() == first


async def test_a_deleted_version_and_its_files_are_gone_and_the_others_stay(
    client: httpx2.AsyncClient, site: Site
) -> None:
    old, new = add(site), add(site)
    assert (await client.delete(f"{ADAPTERS}/smollm2-135m:bot@2")).status_code == 204
    assert (old.exists(), new.exists()) == (True, False)
    assert (await client.get(f"{ADAPTERS}/smollm2-135m:bot")).json()["version"] == 1
    assert (await client.delete(f"{ADAPTERS}/smollm2-135m:bot@2")).status_code == 404


async def test_without_a_version_nothing_is_deleted(client: httpx2.AsyncClient, site: Site) -> None:
    folder = add(site)
    answer = await client.delete(f"{ADAPTERS}/smollm2-135m:bot")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reference")
    assert "smollm2-135m:bot@1" in answer.json()["error"]["message"]
    assert folder.exists()


async def test_another_owners_adapter_cannot_be_deleted(client: httpx2.AsyncClient, site: Site) -> None:
    folder = add(site, owner=SOMEBODY_ELSE)
    assert (await client.delete(f"{ADAPTERS}/smollm2-135m:bot@1")).status_code == 404
    assert folder.exists()
    assert len((await client.get(ADAPTERS)).json()["adapters"]) == 1


@pytest.mark.parametrize("reference", ["smollm2-135m", "nothing:bot@1", "smollm2-135m:bot@0", "..%2F..", "a:..@1"])
async def test_what_names_no_adapter_is_404(client: httpx2.AsyncClient, site: Site, reference: str) -> None:
    add(site)
    assert (await client.get(f"{ADAPTERS}/{reference}")).status_code == 404
    assert (await client.delete(f"{ADAPTERS}/{reference}")).status_code == 404
