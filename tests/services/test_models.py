"""Models by name: built-in, added and running ones."""

import pytest

from mini_claude.errors import Conflict, InvalidRequest, NotFound
from mini_claude.models.catalog import BUILTIN
from mini_claude.services.catalog import Catalog
from mini_claude.services.identity import LOCAL
from mini_claude.types import ModelInfo, ModelSource, ModelSpec

from .conftest import OpenWorker, Worker

MINE = ModelSpec("my-model", "causal_lm", (ModelSource("folder", "/models/mine"),), "Mine", "MIT")


def catalog_of(worker: Worker) -> Catalog:
    """As the terminal's commands make it, which need no runtime."""
    return worker.services.models._catalog


async def test_no_name_and_the_alias_mean_the_default_model(worker: Worker) -> None:
    models = worker.services.models
    assert (await models.resolve(None)).name == (await models.resolve("default")).name == "smollm2-135m"


@pytest.mark.parametrize("name", ["", "nope", "../../etc/passwd", "\ud800", "A" * 1000, "my\x00model"])
async def test_an_unknown_name_is_not_found_with_a_short_message(worker: Worker, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        await worker.services.models.resolve(name)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert len(caught.value.message) < 250


async def test_an_added_model_is_served_by_every_worker_until_it_is_removed(open_worker: OpenWorker) -> None:
    one, two = await open_worker(), await open_worker()
    await catalog_of(one).add(MINE)
    assert await two.services.models.resolve("my-model") == MINE
    assert (await two.services.models.get(LOCAL, "my-model")).description == "Mine"
    with pytest.raises(Conflict):
        await catalog_of(two).add(MINE)
    await catalog_of(two).remove("my-model")
    for attempt in (one.services.models.resolve("my-model"), catalog_of(one).remove("my-model")):
        with pytest.raises(NotFound):
            await attempt


@pytest.mark.parametrize("name", ["smollm2-135m", "default"])
async def test_names_that_are_built_in_cannot_be_taken(worker: Worker, name: str) -> None:
    with pytest.raises(Conflict):
        await catalog_of(worker).add(ModelSpec(name, "causal_lm", ()))


async def test_a_built_in_model_cannot_be_removed(worker: Worker) -> None:
    with pytest.raises(Conflict):
        await catalog_of(worker).remove("smollm2-135m")


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "..", "x" * 65, "a b"])
async def test_a_name_that_could_not_be_a_folder_is_refused(worker: Worker, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await catalog_of(worker).add(ModelSpec(name, "causal_lm", ()))


async def test_the_list_shows_what_runs_beside_what_could(worker: Worker) -> None:
    models = worker.services.models
    await catalog_of(worker).add(MINE)
    await models.load("my-model")
    worker.runtime.models["forgotten"] = ModelInfo("forgotten", "ready")
    listed = {info.name: info for info in await models.list(LOCAL)}
    assert [*listed] == [*(spec.name for spec in BUILTIN), "my-model", "forgotten"]
    assert (listed["smollm2-135m"].state, listed["smollm2-135m"].license) == ("available", "Apache-2.0")
    assert (listed["my-model"].state, listed["my-model"].description) == ("ready", "Mine")
    await models.unload("my-model")
    assert (await models.get(LOCAL, "my-model")).state == "available"
    with pytest.raises(NotFound):
        await models.unload("my-model")


async def test_a_load_may_choose_dtype_device_and_quantization(worker: Worker) -> None:
    info = await worker.services.models.load(None, {"dtype": "bfloat16", "device": "cuda:1", "quantization": "nf4"})
    assert (info.name, info.state, info.license) == ("smollm2-135m", "ready", "Apache-2.0")
    (options,) = worker.runtime.loaded_with
    assert (options.dtype, options.device, options.quantization) == ("bfloat16", "cuda:1", "nf4")
    assert options.engine == "echo"


@pytest.mark.parametrize(
    "override",
    [{"dtype": "int3"}, {"device": "tpu"}, {"device": 1}, {"quantization": "int2"}, {"engine": "torch"}, {"dtype": []}],
)
async def test_any_other_override_is_refused_by_name(worker: Worker, override: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await worker.services.models.load(None, override)
    assert caught.value.param == next(iter(override))
    assert worker.runtime.loaded_with == []
