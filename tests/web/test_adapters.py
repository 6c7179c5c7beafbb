"""Adapters over HTTP: shown with what proves them, taken in, given out, verified, deleted by their owner alone."""

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.models import ModelRepository
from mini_claude.errors import NotFound
from mini_claude.services.identity import LOCAL
from mini_claude.training.adapter_folder import weights_sha256, write_held_out
from mini_claude.types import ModelSource, ModelSpec

from ..torture.payloads import TRAVERSALS
from ..training.tiny_adapters import load_adapted, save_adapter, save_base, some_sequences
from ..training.tiny_gguf import save_gguf
from .conftest import OpenSite, Site, eventually, served, short_processes

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


@pytest.mark.both_databases
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


@pytest.mark.both_databases
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


def add_tiny(site: Site, base: Path) -> None:
    source = ModelSource("folder", str(base))
    ModelRepository(site.services.database).add(ModelSpec("tiny", "causal_lm", (source,)))


@pytest.fixture
def base(site: Site, tmp_path: Path) -> Path:
    """The model `tiny`, which the site knows."""
    folder = save_base(tmp_path / "tiny")
    add_tiny(site, folder)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """As PEFT saves one for it."""
    return save_adapter(base, tmp_path / "peft", size=0.1)


async def send(client: httpx2.AsyncClient, adapter: Path, **fields: str) -> httpx2.Response:
    names = {"config": "adapter_config.json", "weights": "adapter_model.safetensors"}
    files = {part: (name, (adapter / name).read_bytes()) for part, name in names.items()}
    return await client.post(ADAPTERS, files=files, data={"name": "bot", "model": "tiny"} | fields, timeout=60)


def kept(site: Site) -> list[Path]:
    folder = site.services.settings.adapters_dir
    return [path for path in folder.iterdir() if path.name != ".lock"] if folder.exists() else []


@pytest.mark.both_databases
async def test_an_imported_adapter_is_the_next_version_with_what_is_known_of_it(
    client: httpx2.AsyncClient, site: Site, base: Path, adapter: Path
) -> None:
    answer = await send(client, adapter)
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["reference"], version["job_id"], version["certificate"]) == ("tiny:bot@1", None, None)
    assert (version["facts"]["base_revision"], version["facts"]["base_model"]) == (weights_sha256(base), "tiny")
    assert (await client.get(f"{ADAPTERS}/tiny:bot")).json() == version
    assert (await send(client, adapter)).json()["reference"] == "tiny:bot@2"
    assert len(kept(site)) == 2
    weights = [(path / "adapter_model.safetensors").read_bytes() for path in kept(site)]
    assert set(weights) == {(adapter / "adapter_model.safetensors").read_bytes()}
    assert (await client.delete(f"{ADAPTERS}/tiny:bot@1")).status_code == 204
    assert len(kept(site)) == 1


async def test_what_an_import_does_not_understand_is_refused_and_leaves_nothing(
    client: httpx2.AsyncClient, site: Site, base: Path, adapter: Path, tmp_path: Path
) -> None:
    config_path = adapter / "adapter_config.json"
    config = json.loads(config_path.read_text())
    for changes, part_of_reason, param in (
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", "config"),
        ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping", "config"),
        ({"surprise": 1}, "surprise", "config"),
        ({"r": 5}, "rank 5", "weights"),
    ):
        config_path.write_text(json.dumps(config | changes))
        answer = await send(client, adapter)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "unusable_adapter", param)
        assert part_of_reason in error["message"]
        assert str(tmp_path) not in error["message"]
    config_path.write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").write_bytes(b"PK\x03\x04 a pickle")
    assert (await send(client, adapter)).json()["error"]["code"] == "unusable_adapter"
    other = save_base(tmp_path / "other", hidden_size=32)
    stranger = save_adapter(other, tmp_path / "stranger", size=0.1)
    assert "another model" in (await send(client, stranger)).json()["error"]["message"]
    assert kept(site) == []
    assert (await client.get(ADAPTERS)).json() == {"adapters": []}


@pytest.mark.parametrize(
    ("settings", "status"),
    [({"engine": "llama_cpp"}, 400), ({"engine": "auto", "device": "cpu"}, 400), ({"engine": "torch"}, 201)],
)
async def test_an_adapter_that_could_not_be_served_is_not_taken_in(
    open_site: OpenSite, tmp_path: Path, settings: dict[str, Any], status: int
) -> None:
    folder = save_base(tmp_path / "unpacked")
    adapter = save_adapter(folder, tmp_path / "peft", use_dora=True)
    source = ModelSource("gguf", str(save_gguf(folder, tmp_path / "tiny.gguf")))
    site = await open_site(**settings)
    ModelRepository(site.services.database).add(ModelSpec("tiny", "causal_lm", (source,)))
    async with site.client() as client:
        answer = await send(client, adapter)
        assert answer.status_code == status, answer.text
        if status != 201:
            error = answer.json()["error"]
            assert (error["code"], error["param"]) == ("unusable_adapter", "config")
            assert "use_dora" in error["message"]
            assert "set engine to torch" in error["message"]
        plain = await send(client, save_adapter(folder, tmp_path / "plain"))
        assert plain.status_code == 201, plain.text
    assert len(kept(site)) == 1 + (status == 201)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"name": "Bad Name"}, 400, "name"),
        ({"name": "../x"}, 400, "name"),
        ({"name": ""}, 400, "name"),
        ({"model": "nothing"}, 404, "model"),
        ({"folder": "/etc"}, 422, "folder"),
    ],
)
async def test_an_import_names_the_field_that_is_wrong(
    client: httpx2.AsyncClient, site: Site, adapter: Path, fields: dict[str, str], status: int, param: str
) -> None:
    answer = await send(client, adapter, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert kept(site) == []


async def test_an_import_needs_both_files(client: httpx2.AsyncClient, site: Site, adapter: Path) -> None:
    files = {"weights": (adapter / "adapter_model.safetensors").read_bytes()}
    answer = await client.post(ADAPTERS, files=files, data={"name": "bot"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "config")
    assert kept(site) == []


async def test_imports_have_their_own_bounds(open_site: OpenSite, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "tiny")
    adapter = save_adapter(folder, tmp_path / "peft", size=0.1)
    size = sum(path.stat().st_size for path in adapter.iterdir())
    small = await open_site(max_adapter_bytes=1024, max_body_bytes=1024, data_dir=tmp_path / "small")
    add_tiny(small, folder)
    async with small.client() as client:
        assert (await send(client, adapter)).status_code == 413
    full = await open_site(adapter_quota_bytes=int(1.5 * size), max_body_bytes=1024, data_dir=tmp_path / "full")
    add_tiny(full, folder)
    async with full.client() as client:
        assert (await send(client, adapter)).status_code == 201
        answer = await send(client, adapter)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "adapter_quota_exceeded")
        assert len(kept(full)) == 1
        assert (await client.delete(f"{ADAPTERS}/tiny:bot")).status_code == 400
        assert (await client.delete(f"{ADAPTERS}/tiny:bot@1")).status_code == 204
        assert (await send(client, adapter)).status_code == 201


async def export(client: httpx2.AsyncClient, **body: str) -> httpx2.Response:
    return await client.post(f"{ADAPTERS}/tiny:bot/export", json=body, timeout=60)


async def test_an_export_for_peft_is_what_peft_loads_and_has_nobodys_data(
    client: httpx2.AsyncClient, site: Site, base: Path, adapter: Path, tmp_path: Path
) -> None:
    await send(client, adapter)
    (stored,) = kept(site)
    write_held_out(stored, some_sequences())
    answer = await export(client)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == 'attachment; filename="tiny-bot-1.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = ("adapter_config.json", "adapter_model.safetensors", "mini_claude.json")
        assert archive.namelist() == [f"tiny-bot-1/{name}" for name in names]
        archive.extractall(tmp_path / "out")
    assert load_adapted(base, tmp_path / "out" / "tiny-bot-1").peft_config
    assert kept(site) == [stored]


@pytest.mark.parametrize(
    ("body", "name", "start"),
    [
        ({"format": "merged"}, "tiny-bot-1.zip", b"PK"),
        ({"format": "gguf"}, "tiny-bot-1.gguf", b"GGUF"),
        ({"format": "gguf-merged"}, "tiny-bot-1.gguf", b"GGUF"),
        ({"format": "gguf-merged", "tensor_type": "f32"}, "tiny-bot-1.gguf", b"GGUF"),
    ],
)
async def test_each_export_is_one_file_that_nobody_keeps(
    client: httpx2.AsyncClient,
    site: Site,
    base: Path,
    adapter: Path,
    tmp_path: Path,
    body: dict[str, str],
    name: str,
    start: bytes,
) -> None:
    save_gguf(base, tmp_path / "base.gguf")
    await send(client, adapter)
    answer = await export(client, **body)
    assert answer.status_code == 200, answer.text
    assert name in answer.headers["content-disposition"]
    assert answer.content.startswith(start)
    assert len(answer.content) == int(answer.headers["content-length"])
    assert len(kept(site)) == 1


async def test_what_cannot_be_exported_says_what_can(client: httpx2.AsyncClient, site: Site, adapter: Path) -> None:
    await send(client, adapter)
    answer = await export(client, format="gguf-merged")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_export")
    assert "merged safetensors" in answer.json()["error"]["message"]
    for body in ({"format": "onnx"}, {"tensor_type": "q2"}, {"path": "/etc"}):
        answer = await export(client, **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, next(iter(body)))
    assert len(kept(site)) == 1


async def test_a_verified_adapter_has_its_certificate(
    client: httpx2.AsyncClient, base: Path, adapter: Path, tmp_path: Path
) -> None:
    save_gguf(base, tmp_path / "base.gguf")
    await send(client, adapter)
    answer = await client.post(f"{ADAPTERS}/tiny:bot/verify", timeout=120)
    assert answer.status_code == 200, answer.text
    certificate = answer.json()["certificate"]
    assert certificate["passed"], certificate
    assert [step["state"] for step in certificate["steps"]] == ["passed"] * 6
    assert (await client.get(f"{ADAPTERS}/tiny:bot@1")).json() == answer.json()


async def test_a_base_that_is_another_one_now_is_told(client: httpx2.AsyncClient, base: Path, adapter: Path) -> None:
    await send(client, adapter)
    save_base(base, initializer_range=0.1, bos_token_id=0)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    answer = await client.post(f"{ADAPTERS}/tiny:bot/verify", timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "base_changed"), answer.text


async def test_only_its_owner_may_take_an_adapter_away_or_verify_it(client: httpx2.AsyncClient, site: Site) -> None:
    add(site, owner=SOMEBODY_ELSE)
    for what in ("export", "verify"):
        answer = await client.post(f"{ADAPTERS}/smollm2-135m:bot/{what}", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.both_databases
async def test_a_name_belongs_to_whoever_had_it_first(client: httpx2.AsyncClient, site: Site, adapter: Path) -> None:
    """Else somebody who asks for the newest version would be given another's weights."""
    AdapterRepository(site.services.database).add(SOMEBODY_ELSE, "tiny", "bot", "job0", {}, None)
    answer = await send(client, adapter)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "adapter_exists")
    assert kept(site) == []
    assert (await send(client, adapter, name="mine")).status_code == 201


async def test_a_certificate_stays_with_what_was_measured(site: Site) -> None:
    """A version's number is given again when it was deleted meanwhile."""
    repository = AdapterRepository(site.services.database)
    old = repository.add(LOCAL.owner, "tiny", "bot", "one", {}, None)
    repository.remove(old)
    new = repository.add(LOCAL.owner, "tiny", "bot", "two", {}, None)
    assert new.reference == old.reference
    for late in (repository.remove, lambda version: repository.certify(version, CERTIFICATE)):
        with pytest.raises(NotFound):
            late(old)
    assert repository.list() == (new,)


async def test_an_export_ignores_ranges_since_every_one_is_made_anew(client: httpx2.AsyncClient, adapter: Path) -> None:
    await send(client, adapter)
    answer = await client.post(f"{ADAPTERS}/tiny:bot/export", json={}, headers={"range": "bytes=5-"}, timeout=60)
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "none")
    assert answer.content.startswith(b"PK")


@pytest.mark.parametrize("what", ["export", "verify"])
async def test_work_on_an_adapter_ends_with_its_client_and_leaves_nothing(
    client: httpx2.AsyncClient, site: Site, adapter: Path, what: str
) -> None:
    await send(client, adapter)
    (stored,) = kept(site)
    async with served(site) as address:
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {ADAPTERS}/tiny:bot/{what} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: 2\r\n\r\n{{}}".encode())
        await eventually(lambda: bool(short_processes()))
        writer.close()
        await eventually(lambda: not short_processes() and kept(site) == [stored])
    assert (await export(client)).status_code == 200


async def test_exports_that_nobody_takes_are_bounded(
    site: Site, client: httpx2.AsyncClient, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.services.adapters._exports, "num_places", 1)
    await send(client, adapter)
    waiting = await site.services.adapters.export(LOCAL, "tiny:bot", "peft")
    answer = await export(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    await waiting.aclose()
    assert (await export(client)).status_code == 200
    assert len(kept(site)) == 1


async def test_paths_in_names_and_references_are_never_files(
    client: httpx2.AsyncClient, site: Site, tmp_path: Path
) -> None:
    """The files of these imports are empty, so one that had a good name would be refused as well, by another code."""
    site.services.settings.adapters_dir.mkdir()
    outside = tmp_path / "canary"
    outside.write_text("tweet")
    for payload in (each.replace("CANARY", str(outside)) for each in TRAVERSALS):
        for fields in ({"name": payload}, {"name": "bot", "model": payload}):
            files = {"config": (payload, b"{}"), "weights": (payload, b"")}
            answer = await client.post(ADAPTERS, files=files, data=fields)
            assert answer.status_code in (400, 404, 422), (payload, answer.text)
            assert answer.json()["error"]["code"] != "unusable_adapter", (payload, answer.text)
        for what in ("export", "verify"):
            answer = await client.post(f"{ADAPTERS}/{quote(f'smollm2-135m:{payload}', safe='')}/{what}", json={})
            assert answer.status_code in (404, 405), (payload, answer.text)
    assert outside.read_text() == "tweet"
    assert kept(site) == []


async def test_a_header_that_unpacks_to_far_too_much_ends_its_reader_only(
    client: httpx2.AsyncClient, site: Site, adapter: Path
) -> None:
    header = b'{"x":[' + b"{}," * 33_000_000 + b"{}]}"
    (adapter / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    answer = await send(client, adapter)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unusable_adapter"), answer.text
    assert kept(site) == []
