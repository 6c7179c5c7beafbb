"""From a catalog entry to files: a model that has to be unpacked first, elsewhere than in the engine's process."""

import asyncio
from pathlib import Path

import pytest

from mini_claude.errors import ModelLoadError
from mini_claude.runtime import loaded_model as module
from mini_claude.runtime.loaded_model import open_model
from mini_claude.runtime.short_process import ShortProcessEnded, run_short
from mini_claude.types import LoadOptions, ModelSource, ModelSpec
from mini_claude.utils.config import Settings

from ..training.tiny_adapters import save_base
from ..training.tiny_gguf import save_gguf

OPTIONS = LoadOptions(engine="auto", device="cpu", num_threads=1)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    path = save_gguf(save_base(tmp_path / "base"), tmp_path / "base.gguf")
    return ModelSpec("tiny", "causal_lm", (ModelSource("gguf", str(path)),))


async def test_a_model_is_unpacked_in_a_process_of_its_own_and_once(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(*_: object) -> None:
        raise AssertionError("torch and its memory would stay")

    monkeypatch.setattr("mini_claude.models.gguf_conversion.convert_gguf", here)
    settings = Settings(data_dir=tmp_path / "data")
    for runner in (run_short, None):
        monkeypatch.setattr(module, "run_short", runner)
        loaded = await asyncio.to_thread(open_model, spec, OPTIONS, settings)
        assert loaded.chat_model.name == "tiny"
        await loaded.engine.close()
    assert (settings.models_dir / "tiny" / "model.safetensors").exists()


def test_why_it_cannot_be_unpacked_comes_from_there(spec: ModelSpec, tmp_path: Path) -> None:
    Path(spec.sources[0].location).write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelLoadError, match=r"base\.gguf"):
        open_model(spec, OPTIONS, Settings(data_dir=tmp_path / "data"))


def test_a_process_that_ended_unpacked_nothing(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> bytes:
        raise ShortProcessEnded("it was killed, mostly a sign of too little memory")

    monkeypatch.setattr(module, "run_short", killed)
    with pytest.raises(ModelLoadError, match=r"tiny cannot be unpacked: it was killed.*memory\."):
        open_model(spec, OPTIONS, Settings(data_dir=tmp_path / "data"))


def test_what_lies_nowhere_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_short", None)
    spec = ModelSpec("tiny", "causal_lm", (ModelSource("hub", "owner/tiny"),))
    with pytest.raises(ModelLoadError, match="models pull tiny"):
        open_model(spec, OPTIONS, Settings(data_dir=tmp_path / "data"))
