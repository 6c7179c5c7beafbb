"""Where a model's weights are from."""

import hashlib
import json
from pathlib import Path

import pytest

from mini_claude.models.origin import origin_of
from mini_claude.types import ModelSource, ModelSpec

HUB = ModelSource("hub", "somebody/model")
PACKAGE = ModelSource("package", "pytest/model.gguf")


def spec(*sources: ModelSource) -> ModelSpec:
    return ModelSpec("mine", "causal_lm", sources)


def made_from(models_dir: Path, source: ModelSource, **weights: bytes) -> None:
    folder = models_dir / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made_from.json").write_text(json.dumps({"kind": source.kind, "location": source.location}))
    for name, data in weights.items():
        (folder / f"{name}.safetensors").write_bytes(data)


def test_the_source_that_was_used_is_told_with_the_hash_of_all_weights(tmp_path: Path) -> None:
    made_from(tmp_path, HUB, b=b"second", a=b"first")
    origin = origin_of(spec(PACKAGE, HUB), tmp_path)
    assert origin is not None
    assert (origin.source, origin.version) == (HUB, None)
    assert origin.sha256 == hashlib.sha256(b"firstsecond").hexdigest()


def test_of_a_package_its_version_is_told(tmp_path: Path) -> None:
    made_from(tmp_path, PACKAGE, a=b"1")
    origin = origin_of(spec(PACKAGE), tmp_path)
    assert origin is not None
    assert origin.version == pytest.__version__


def test_weights_that_change_are_read_again(tmp_path: Path) -> None:
    source = ModelSource("folder", str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"1")
    before = origin_of(spec(source), tmp_path / "models")
    (tmp_path / "a.safetensors").write_bytes(b"2")
    after = origin_of(spec(source), tmp_path / "models")
    assert before is not None
    assert after is not None
    assert before.sha256 != after.sha256 == hashlib.sha256(b"2").hexdigest()


def test_a_model_that_is_not_here_has_none(tmp_path: Path) -> None:
    made_from(tmp_path, HUB, a=b"1")
    assert origin_of(spec(ModelSource("hub", "somebody/else")), tmp_path) is None
    assert origin_of(spec(ModelSource("folder", str(tmp_path / "gone"))), tmp_path) is None
