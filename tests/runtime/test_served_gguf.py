"""Which file llama.cpp gets, and which engine a model gets."""

import asyncio
import os
from pathlib import Path

import pytest

from mini_claude.errors import ModelLoadError, StorageError
from mini_claude.models.weight_files import read_gguf_header
from mini_claude.runtime import served_gguf as module
from mini_claude.runtime.loaded_model import open_model
from mini_claude.runtime.served_gguf import served_gguf
from mini_claude.training import gguf_layout
from mini_claude.types import LoadOptions, ModelSource, ModelSpec, ServedGGUF
from mini_claude.utils.config import Settings

from ..training.tiny_adapters import save_base
from ..training.tiny_gguf import save_gguf


class Model:
    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder / "data")
        self.folder = save_base(self.settings.models_dir / "tiny")
        self.gguf = save_gguf(self.folder, folder / "base.gguf")
        self.spec = ModelSpec("tiny", "causal_lm", (ModelSource("gguf", str(self.gguf)),))

    def served(self, gguf_type: ServedGGUF) -> tuple[Path, str]:
        return served_gguf(self.spec, self.folder, self.settings.models_dir, LoadOptions(gguf_type=gguf_type))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def test_the_file_that_it_came_as_is_served_where_nothing_is_gained(model: Model) -> None:
    assert model.served("as_is") == (model.gguf, "f32")
    assert model.served("auto") == (model.gguf, "f32")


@pytest.mark.parametrize("wanted", ["f16", "q8_0", "q4_0"])
def test_another_type_is_made_once(model: Model, wanted: ServedGGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    path, name = model.served(wanted)
    assert name == wanted
    types = {name: tensor.dtype for name, tensor in read_gguf_header(path).items()}
    assert types["blk.0.ffn_up.weight"] == wanted.upper()
    assert types["output_norm.weight"] == "F32"
    monkeypatch.setattr(module, "run_short", None)
    assert model.served(wanted) == (path, wanted)


def test_a_type_without_fast_kernels_gives_way_to_one_that_has_some(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOW_TYPES", ("F32",))
    assert model.served("auto") == (model.folder / "q8_0.gguf", "q8_0")
    monkeypatch.setattr(module, "_MAX_ELEMENTS", 1000)
    assert model.served("auto") == (model.gguf, "f32")


def test_a_model_that_cannot_be_written_anew_is_served_as_it_is(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model.folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "olmo2"'))
    monkeypatch.setattr(module, "_SLOW_TYPES", ("F32",))
    assert model.served("auto") == (model.gguf, "f32")
    with pytest.raises(ModelLoadError, match="gguf_type q4_0 cannot be had for tiny"):
        model.served("q4_0")


def test_without_room_for_another_type_the_file_is_served_as_it_is(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> bytes:
        raise StorageError("The disk is full.", code="disk_full")

    monkeypatch.setattr(module, "_SLOW_TYPES", ("F32",))
    monkeypatch.setattr(module, "run_short", full)
    assert model.served("auto") == (model.gguf, "f32")
    with pytest.raises(ModelLoadError, match="The disk is full"):
        model.served("q8_0")


def test_a_file_that_was_replaced_is_made_anew(model: Model) -> None:
    path, _ = model.served("q8_0")
    first = path.read_bytes()
    other = save_base(model.folder, initializer_range=0.4)
    save_gguf(other, model.gguf)
    later = path.stat().st_mtime + 5
    os.utime(model.gguf, (later, later))
    model.served("q8_0")
    assert path.read_bytes() != first


def test_a_model_from_elsewhere_has_no_file_for_llama_cpp(model: Model) -> None:
    (model.folder / "made_from.json").unlink()
    with pytest.raises(ModelLoadError, match="set engine to torch"):
        model.served("auto")


@pytest.mark.parametrize(
    ("options", "kind", "dtype"),
    [
        (LoadOptions(engine="auto", device="cpu", num_threads=1), "llama_cpp", "f32"),
        (LoadOptions(engine="llama_cpp", gguf_type="q8_0", num_threads=1), "llama_cpp", "q8_0"),
        (LoadOptions(engine="auto", device="cpu", dtype="bfloat16", num_threads=1), "torch", "bfloat16"),
        (LoadOptions(engine="torch", device="cpu", num_threads=1), "torch", "float32"),
    ],
)
async def test_the_engine_follows_from_the_options_and_the_file(
    model: Model, options: LoadOptions, kind: str, dtype: str
) -> None:
    loaded = await asyncio.to_thread(open_model, model.spec, options, model.settings)
    assert (loaded.kind, loaded.dtype, loaded.device) == (kind, dtype, "cpu")
    await loaded.engine.close()


async def test_a_registered_folder_is_not_believed_about_where_it_came_from(model: Model) -> None:
    spec = ModelSpec("other", "causal_lm", (ModelSource("folder", str(model.folder)),))
    options = LoadOptions(engine="auto", num_threads=1)
    loaded = await asyncio.to_thread(open_model, spec, options, model.settings)
    assert loaded.kind == "torch"
    await loaded.engine.close()


async def test_auto_is_torch_where_an_adapter_could_not_be_served(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_layout, "_ARCHITECTURES", {})
    options = LoadOptions(engine="auto", num_threads=1)
    loaded = await asyncio.to_thread(open_model, model.spec, options, model.settings)
    assert loaded.kind == "torch"
    await loaded.engine.close()


async def test_auto_is_torch_where_llama_cpp_cannot(model: Model) -> None:
    options = LoadOptions(engine="auto", num_threads=1, max_num_seqs=257)
    loaded = await asyncio.to_thread(open_model, model.spec, options, model.settings)
    assert loaded.kind == "torch"
    await loaded.engine.close()


def test_what_only_torch_has_is_refused_for_llama_cpp(model: Model) -> None:
    for options in (
        LoadOptions(engine="llama_cpp", quantization="int8"),
        LoadOptions(engine="llama_cpp", device="cuda"),
    ):
        with pytest.raises(ModelLoadError, match="gguf_type instead"):
            open_model(model.spec, options, model.settings)


async def test_auto_is_torch_for_what_is_no_gguf_file(model: Model) -> None:
    (model.folder / "made_from.json").write_text('{"kind": "hub", "location": "owner/tiny"}')
    spec = ModelSpec("tiny", "causal_lm", (ModelSource("hub", "owner/tiny"),))
    loaded = await asyncio.to_thread(open_model, spec, LoadOptions(engine="auto", num_threads=1), model.settings)
    assert loaded.kind == "torch"
    await loaded.engine.close()
