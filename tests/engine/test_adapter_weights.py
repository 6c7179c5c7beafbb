"""Reading an adapter for a certain model: what fits comes as float32 arrays, anything else is refused in a sentence."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from mini_claude.engine.adapter_weights import LayerShape, read_adapter
from mini_claude.errors import ModelLoadError, UnsafeModelFile
from mini_claude.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE

LAYERS = {
    f"model.layers.{number}.self_attn.{name}": LayerShape(6, 4 if name == "v_proj" else 6)
    for number in range(2)
    for name in ("q_proj", "v_proj", "o_proj")
}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
Q, V = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.1.self_attn.v_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound adapter on q_proj and v_proj."""
    tensors = {}
    for layer, shape in LAYERS.items():
        if not layer.endswith("o_proj"):
            tensors[f"base_model.model.{layer}.lora_A.weight"] = np.full((2, shape.in_features), 0.5, np.float32)
            tensors[f"base_model.model.{layer}.lora_B.weight"] = np.full((shape.out_features, 2), 0.25, np.float32)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(CONFIG))
    return tmp_path


def configure(folder: Path, **options: object) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG | options))


def change(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def test_a_sound_adapter_is_read_with_its_scale(folder: Path) -> None:
    weights = read_adapter(folder, LAYERS)
    assert set(weights) == {layer for layer in LAYERS if not layer.endswith("o_proj")}
    part = weights["model.layers.1.self_attn.v_proj"]
    assert (part.a.shape, part.b.shape, part.scale, part.magnitude) == ((2, 6), (4, 2), 2.0, None)
    assert part.a.dtype == np.float32
    assert part.a.flags.writeable  # torch takes no others


def test_rslora_scales_by_the_root_of_the_rank(folder: Path) -> None:
    configure(folder, use_rslora=True)
    assert read_adapter(folder, LAYERS)["model.layers.0.self_attn.q_proj"].scale == pytest.approx(4 / 2**0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"peft_type": "IA3"},
        {"task_type": "SEQ_CLS"},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["experts.down_proj"]},
        {"a_future_option": 1},
        {"r": 257},
        {"r": True},
        {"r": "2"},
        {"lora_alpha": float("nan")},
        {"alpha_pattern": {"(a+)+$": 4}},
        {"use_dora": "yes"},
    ],
    ids=str,
)
def test_an_option_that_is_not_honoured_is_refused_by_name(folder: Path, options: dict[str, object]) -> None:
    configure(folder, **options)
    with pytest.raises(ModelLoadError, match=next(iter(options))):
        read_adapter(folder, LAYERS)


TENSORS: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], object]]] = {
    "B is missing": ("lora_B", lambda tensors: tensors.pop(f"{Q}.lora_B.weight")),
    "A is missing": ("lora_A", lambda tensors: tensors.pop(f"{Q}.lora_A.weight")),
    "a layer is missing": (
        "lacks the tensors of model.layers.1.self_attn.v_proj",
        lambda tensors: [tensors.pop(f"{V}.lora_{part}.weight") for part in "AB"],
    ),
    "nothing is left": ("no tensors", lambda tensors: tensors.clear()),
    "a whole layer": ("is no LoRA", lambda tensors: tensors.update({f"{Q}.weight": np.ones((6, 6), np.float32)})),
    "an embedding": ("is no LoRA", lambda tensors: tensors.update({f"{Q}.lora_embedding_A": np.ones((2, 6))})),
    "a name that climbs": ("is no LoRA", lambda tensors: tensors.update({"../x": np.ones(1, np.float32)})),
    "another layer": (
        "no linear layer model.layers.7.self_attn.q_proj",
        lambda tensors: tensors.update(
            {f"{Q.replace('0', '7')}.lora_{part}.weight": tensors[f"{Q}.lora_{part}.weight"] for part in "AB"}
        ),
    ),
    "a magnitude without DoRA": (
        "magnitude",
        lambda t: t.update({f"{Q}.lora_magnitude_vector": np.ones(6, np.float32)}),
    ),
    "another rank": ("rank", lambda tensors: tensors.update({f"{Q}.lora_A.weight": np.ones((3, 6), np.float32)})),
    "other inputs": ("7 inputs", lambda tensors: tensors.update({f"{Q}.lora_A.weight": np.ones((2, 7), np.float32)})),
    "other outputs": ("9 outputs", lambda tensors: tensors.update({f"{V}.lora_B.weight": np.ones((9, 2), np.float32)})),
    "whole numbers": ("I64", lambda tensors: tensors.update({f"{Q}.lora_A.weight": np.ones((2, 6), np.int64)})),
    "NaN": ("not finite", lambda tensors: tensors.update({f"{Q}.lora_A.weight": np.full((2, 6), np.nan, np.float32)})),
}


@pytest.mark.parametrize(("sentence", "edit"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_are_refused(
    folder: Path, sentence: str, edit: Callable[[dict[str, np.ndarray]], object]
) -> None:
    change(folder, edit)
    with pytest.raises(ModelLoadError, match=sentence):
        read_adapter(folder, LAYERS)


def test_dora_needs_its_magnitudes(folder: Path) -> None:
    configure(folder, use_dora=True)
    with pytest.raises(ModelLoadError, match="lora_magnitude_vector"):
        read_adapter(folder, LAYERS)


def test_an_adapter_on_some_of_the_layers_by_its_own_choice_is_complete(folder: Path) -> None:
    change(folder, lambda tensors: [tensors.pop(f"{V}.lora_{part}.weight") for part in "AB"])
    configure(folder, layers_to_transform=[0, 1], target_modules=r".*_proj")
    assert len(read_adapter(folder, LAYERS)) == 3


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "notes.txt", "modeling.py"])
def test_a_folder_that_could_execute_is_refused_and_nothing_in_it_runs(folder: Path, name: str) -> None:
    canary = folder.parent / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (canary,)

    (folder / name).write_bytes(pickle.dumps(Payload(), 4))
    with pytest.raises(UnsafeModelFile):
        read_adapter(folder, LAYERS)
    assert not canary.exists()


def test_weights_that_lie_elsewhere_are_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / WEIGHTS_FILE
    (folder / WEIGHTS_FILE).rename(elsewhere)
    (folder / WEIGHTS_FILE).symlink_to(elsewhere)
    with pytest.raises(UnsafeModelFile, match="link"):
        read_adapter(folder, LAYERS)


def test_damaged_weights_are_refused(folder: Path) -> None:
    raw = (folder / WEIGHTS_FILE).read_bytes()
    for damaged in (raw[:-1], raw[:20], b"", b"\xff" * len(raw)):
        (folder / WEIGHTS_FILE).write_bytes(damaged)
        with pytest.raises(ModelLoadError, match="damaged"):
            read_adapter(folder, LAYERS)


def test_too_little_memory_is_refused_with_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ModelLoadError, match=r"needs .* MB and 0 MB are free") as caught:
        read_adapter(folder, LAYERS)
    assert caught.value.code == "insufficient_memory"


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=name):
        read_adapter(folder, LAYERS)
    with pytest.raises(ModelLoadError, match="not a folder"):
        read_adapter(folder / "nowhere", LAYERS)
