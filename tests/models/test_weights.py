import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_claude.errors import ModelLoadError
from mini_claude.models.weights import load_weights
from mini_claude.types import LoadOptions, Quantization


def test_weights_come_ready_to_evaluate(tiny_model: Path) -> None:
    model = load_weights(tiny_model, LoadOptions(device="cpu"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    saved = load_file(tiny_model / "model.safetensors")
    assert torch.equal(model.get_parameter("model.norm.weight"), saved["model.norm.weight"])


def test_dtype_is_an_option(tiny_model: Path) -> None:
    assert load_weights(tiny_model, LoadOptions(device="cpu", dtype="bfloat16")).dtype == torch.bfloat16


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_weights_stay_close_to_the_original(
    tiny_model: Path, quantization: Quantization, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = torch.tensor([[1, 5, 9, 3]])
    expected = load_weights(tiny_model, LoadOptions(device="cpu"))(ids).logits
    model = load_weights(tiny_model, LoadOptions(device="cpu", quantization=quantization))
    assert type(model.get_submodule("model.layers.0.mlp.up_proj")) is not torch.nn.Linear
    similarity = torch.nn.functional.cosine_similarity(model(ids).logits.flatten(), expected.flatten(), dim=0)
    assert similarity > 0.95
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_too_little_memory_is_refused_with_numbers(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ModelLoadError, match=r"need .* MB and 0 MB are free") as caught:
        load_weights(tiny_model, LoadOptions(device="cpu"))
    assert caught.value.code == "insufficient_memory"


def test_missing_tensors_are_not_filled_with_random_numbers(tiny_model: Path) -> None:
    tensors = load_file(tiny_model / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tiny_model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lack 1 tensors .*up_proj"):
        load_weights(tiny_model, LoadOptions(device="cpu"))


def test_unknown_architectures_are_named(tiny_model: Path) -> None:
    (tiny_model / "config.json").write_text(json.dumps({"model_type": "klingon"}))
    with pytest.raises(ModelLoadError, match="klingon"):
        load_weights(tiny_model, LoadOptions(device="cpu"))


def test_a_gpu_that_is_not_there_is_named(tiny_model: Path) -> None:
    with pytest.raises(ModelLoadError, match="cuda:99"):
        load_weights(tiny_model, LoadOptions(device="cuda:99"))
