"""The Models tab: cards of models and versions, and its events over the echo engine."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.records import AdapterVersion
from mini_claude.errors import InvalidRequest
from mini_claude.runtime.messages import ProcessMemory, RuntimeStatus
from mini_claude.services.identity import LOCAL, Caller
from mini_claude.types import GpuMemory, ModelInfo, ModelOrigin, ModelSource, SamplingParams
from mini_claude.web.page.adapter_import import parts_of
from mini_claude.web.page.adapter_list import items_of
from mini_claude.web.page.adapter_panel import EXPORTS, details_html
from mini_claude.web.page.model_list import item_of, memory_html
from mini_claude.web.page.models import ModelsTab
from mini_claude.web.page.proof import base_line, certificate_table, origin_line, parity_of, settings_line

from ..conftest import Site
from ..echo_runtime import UNLOADABLE
from .conftest import SOMEBODY_ELSE

OTHER = Caller(SOMEBODY_ELSE, SOMEBODY_ELSE)
PASSED = {"passed": True, "reason": "All forms agree."}
STEP = {
    "name": "engine_llama_cpp",
    "state": "passed",
    "tolerance": 0.001,
    "max_difference": 0.2,
    "mean_difference": 0.01,
    "top1_agreement": 1.0,
    "reason": "<rounded>",
}
PEFT = next(iter(EXPORTS))


def version(number: int, **changes: Any) -> AdapterVersion:
    fields: dict[str, Any] = {"owner": LOCAL.owner, "job_id": "j", "facts": {}, "certificate": None, **changes}
    return AdapterVersion(model="m", name="bot", version=number, folder=f"f{number}", created_at=0.0, **fields)


def click(value: object) -> gr.SelectData:
    return gr.SelectData(None, {"index": 0, "value": value})


def add(site: Site, *, owner: str = LOCAL.owner) -> AdapterVersion:
    repository = AdapterRepository(site.services.database)
    folder = f"job{len(repository.list())}"
    (site.services.settings.adapters_dir / folder).mkdir(parents=True)
    facts = {"metrics": {"eval_loss": 0.5, "eval_loss_before": 2.0}}
    return repository.add(owner, "smollm2-135m", "bot", folder, facts, None)


@pytest.fixture
async def tab(site: Site) -> ModelsTab:
    with gr.Blocks():
        return ModelsTab(site.services)


# --- cards ---


def test_a_model_that_is_ready_can_be_unloaded_and_shows_what_it_takes() -> None:
    info = ModelInfo("m", "ready", license="MIT", engine="torch", dtype="float32", memory_bytes=540_000_000, restarts=2)
    item = item_of(info, manages=True)
    assert [action["verb"] for action in item["actions"]] == ["load", "unload"]
    assert "540 MB" in item["facts"]
    assert "2 times after a crash" in item["facts"]
    assert [action["verb"] for action in item_of(ModelInfo("m", "available"), manages=True)["actions"]] == ["load"]
    assert item_of(info, manages=False)["actions"] == []
    assert item_of(ModelInfo("m", "loading"), manages=True)["actions"][0]["off"] == "disabled"


def test_a_model_that_is_not_on_this_machine_says_how_it_comes_here() -> None:
    item = item_of(ModelInfo("m", "failed", license="MIT", error="no"), manages=True, absent=True)
    assert (item["state"], item["actions"], item["error"]) == ("not on this machine", [], "")
    assert "mini-claude models pull m" in item["facts"]


def test_memory_is_told_of_models_machine_and_gpus() -> None:
    processes = (ProcessMemory("engine:m", 1, 2_000_000_000), ProcessMemory("page", 2, 9_000_000_000))
    status = RuntimeStatus((), processes, {}, (GpuMemory(0, "H100", 30_000_000_000, 80_000_000_000),))
    html = memory_html(status, 8_000_000_000, 16_000_000_000)
    assert "models hold 2.0 GB" in html
    assert "8.0 of 16.0 GB" in html
    assert "GPU 0: 50.0 GB free" in html


def test_versions_of_an_adapter_stand_together_the_newest_first() -> None:
    better = {"metrics": {"eval_loss": 1.25, "eval_loss_before": 2.5}}
    versions = [version(1, certificate=PASSED), version(2, job_id=None), version(3, facts=better)]
    (adapter,) = items_of(versions, LOCAL, "m:bot@2")
    assert [each["number"] for each in adapter["versions"]] == [3, 2, 1]
    assert [each["chosen"] for each in adapter["versions"]] == ["false", "true", "false"]
    assert [each["parity"] for each in adapter["versions"]] == ["not verified", "not verified", "verified"]
    assert "held-out loss 2.500 → 1.250" in adapter["versions"][0]["facts"]
    assert "imported" in adapter["versions"][1]["facts"]
    assert (adapter["whose"], items_of(versions, OTHER, "")[0]["whose"]) == ("", "(of another key)")


def test_details_hold_the_measurements_and_nothing_that_could_run() -> None:
    facts = {"metrics": {"train_loss": 1.23456}, "arguments": {"lora_r": 8, "unset": None}, "dataset_sha256": "<d>"}
    html = details_html(version(1, facts=facts, certificate={**PASSED, "steps": [STEP]}), "PROOF", mine=False)
    assert "PROOF" in html
    assert "1.235" in html
    assert "lora_r" in html
    assert "unset" not in html
    assert "&lt;d&gt;" in html
    assert "somebody else's" in html


def test_of_a_form_that_rounds_the_mean_difference_is_shown() -> None:
    table = certificate_table({"steps": [STEP, {**STEP, "max_difference": None, "state": "skipped"}]})
    assert "0.01 (mean)" in table
    assert "&lt;rounded&gt;" in table
    assert "0.0001 (largest)" in certificate_table({"steps": [{**STEP, "max_difference": 0.0001}]})


def test_a_certificate_is_told_in_a_word() -> None:
    assert "not verified" in parity_of(None)
    assert "All forms agree." in parity_of(PASSED)
    assert "FAILED" in parity_of({"passed": False, "reason": "They differ."})


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (ModelSource("package", "llm/a.gguf"), "file a.gguf of the Python package llm 1.0"),
        (ModelSource("hub", "owner/name"), "owner/name of the model hub"),
        (ModelSource("gguf", "/home/me/private/a.gguf"), "the local file or folder a.gguf"),
    ],
)
def test_the_origin_of_weights_tells_no_path_of_this_machine(source: ModelSource, shown: str) -> None:
    line = origin_line(ModelOrigin(source, "1.0", "ab" * 32))
    assert shown in line
    assert "private" not in line


def test_an_adapter_on_other_weights_than_its_own_is_told() -> None:
    origin = ModelOrigin(ModelSource("hub", "a/b"), None, "ab" * 32)
    assert "exactly the weights" in base_line(version(1, facts={"base_revision": "ab" * 32}), origin)
    assert "other base" in base_line(version(1, facts={"base_revision": "cd" * 32}), origin)
    assert base_line(version(1), None) == "added to m"


def test_only_settings_that_matter_are_told() -> None:
    assert settings_line(SamplingParams()) == "settings: none"
    assert settings_line(SamplingParams(temperature=0, seed=7)) == "settings: temperature 0, seed 7"


@pytest.mark.parametrize("names", [[], ["a.json"], ["a.json", "b.json"], ["a.json", "b.safetensors", "c.json"]])
def test_an_import_needs_exactly_its_two_files(names: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="exactly two files"):
        parts_of(names)


# --- events ---


async def test_models_are_loaded_with_the_chosen_options_and_unloaded(
    tab: ModelsTab, site: Site, visit: gr.Request
) -> None:
    async for update in tab._load(visit, click(["load", "smollm2-135m"]), "", "bfloat16", ""):
        (card,) = [item for item in update[tab.models.list] if item["name"] == "smollm2-135m"]
        assert card["state"] == "ready"
        assert "numbers: bfloat16" in card["facts"]
    async for _ in tab._load(visit, click(["unload", "smollm2-135m"]), "", "auto", ""):
        pass
    assert site.runtime.loaded == {}


async def test_a_user_sees_the_models_and_can_neither_load_nor_unload_one(
    tab: ModelsTab, site: Site, visit: gr.Request, foreign_visit: gr.Request
) -> None:
    for admin in (True, False):
        request = visit if admin else foreign_visit
        _, options = await tab._names(request)
        cards = (await tab._refresh(request, "", None))[tab.models.list]
        assert options.visible is admin
        assert {bool(card["actions"]) for card in cards if card["state"] != "not on this machine"} == {admin}
    await site.services.models.load("smollm2-135m")
    for verb in ("load", "unload"):
        with pytest.raises(gr.Error, match="only an admin may"):
            async for _ in tab._load(foreign_visit, click([verb, "smollm2-135m"]), "", "bfloat16", ""):
                pass
    assert [info.dtype for info in site.runtime.loaded.values()] == ["auto"]


async def test_a_load_that_fails_says_why(tab: ModelsTab, visit: gr.Request) -> None:
    with pytest.raises(gr.Error, match="fetch it again"):
        async for _ in tab._load(visit, click(["load", UNLOADABLE]), "", "auto", ""):
            pass


async def test_what_has_not_changed_is_not_drawn_again(tab: ModelsTab, site: Site, visit: gr.Request) -> None:
    first = await tab._refresh(visit, "", None)
    assert tab.adapters.list in first
    add(site)
    second = await tab._refresh(visit, "", first[tab.seen])
    assert tab.adapters.list in second
    assert tab.models.list not in second
    third = await tab._refresh(visit, "", second[tab.seen])
    assert tab.adapters.list not in third


async def test_a_version_is_opened_and_deleted_by_its_owner(tab: ModelsTab, site: Site, visit: gr.Request) -> None:
    made = add(site)
    opened = await tab._open(visit, click(made.reference), None)
    assert (opened[tab.chosen], opened[tab.panel.actions].visible) == (made.reference, True)
    assert "held-out loss 2.000 → 0.500" in opened[tab.panel.details]
    deleted = await tab._delete(visit, made.reference, None)
    assert (deleted[tab.chosen], deleted[tab.adapters.list]) == ("", [])


async def test_anothers_version_is_shown_and_cannot_be_changed(
    tab: ModelsTab, site: Site, visit: gr.Request, foreign_visit: gr.Request
) -> None:
    made = add(site)
    opened = await tab._open(foreign_visit, click(made.reference), None)
    assert opened[tab.panel.actions].visible is False
    with pytest.raises(gr.Error, match="no adapter 'smollm2-135m:bot@1' of yours"):
        await tab._delete(foreign_visit, made.reference, None)
    for begin in (
        tab._verify(foreign_visit, made.reference, None),
        tab._export(foreign_visit, PEFT, made.reference, None),
    ):
        await begin
    errands = tab.errands.errands.of(OTHER)
    for errand in errands:
        assert errand.task is not None
        await errand.task
    assert len(errands) == 2
    assert all("of yours" in (errand.error or "") for errand in errands)
    assert tab.errands.errands.of(LOCAL) == []


async def test_without_a_chosen_version_nothing_is_begun(tab: ModelsTab, visit: gr.Request) -> None:
    with pytest.raises(gr.Error, match="Choose a version"):
        await tab._verify(visit, "", None)


async def test_an_import_that_cannot_be_is_refused_in_words(tab: ModelsTab, visit: gr.Request, tmp_path: Path) -> None:
    with pytest.raises(gr.Error, match="exactly two files"):
        await tab._import(visit, None, "bot", None, None)
    paths = [tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"]
    for path in paths:
        path.write_bytes(b"{}")
    with pytest.raises(gr.Error, match="cannot name an adapter"):
        await tab._import(visit, [str(path) for path in paths], "Not a name", None, None)
