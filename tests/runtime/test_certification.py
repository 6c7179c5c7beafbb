"""The certificate of real adapters in every form, the engine's included, and of exports that went wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_claude.errors import InvalidRequest, ModelLoadError
from mini_claude.runtime import certification
from mini_claude.runtime.adapter_requests import Base, VerifyRequest
from mini_claude.runtime.certification import CertificationRequest, certify_adapter
from mini_claude.runtime.short_process import run_short
from mini_claude.training.adapter_folder import AdapterFacts, weights_sha256, write_facts, write_held_out
from mini_claude.training.merge import merge_adapter
from mini_claude.types import AdapterRef, ModelSource, ModelSpec

from ..training.tiny_adapters import save_adapter, save_base, some_sequences
from ..training.tiny_gguf import save_gguf

STEPS = ["engine", "engine_llama_cpp", "merged", "gguf_adapter", "gguf_merged", "gguf_adapter_quantized"]


def request(base: Path, adapter: Path) -> CertificationRequest:
    return CertificationRequest(str(base), str(adapter), tuple(map(tuple, some_sequences(2))))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = save_base(tmp_path / "base")
    save_gguf(folder, tmp_path / "base.gguf")
    return folder


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["plain", "rsLoRA", "DoRA"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_good_adapter_is_the_same_everywhere(tmp_path: Path, architecture: str, lora: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base", architecture)
    save_gguf(base, tmp_path / "base.gguf")
    certificate = certify_adapter(request(base, save_adapter(base, tmp_path / "adapter", size=0.1, **lora)))
    assert certificate.passed, certificate.reason
    assert [step.name for step in certificate.steps] == STEPS
    skipped = {step.name for step in certificate.steps if step.state == "skipped"}
    without_dora = {"engine_llama_cpp", "gguf_adapter", "gguf_adapter_quantized"}
    assert skipped == (without_dora if lora.get("use_dora") else set())
    assert certificate.identity["base_sha256"] == weights_sha256(base)
    assert {"torch", "peft", "xllamacpp"} <= certificate.environment.keys()


def test_a_model_that_is_no_gguf_is_certified_in_the_other_forms(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    certificate = certify_adapter(request(base, save_adapter(base, tmp_path / "adapter", size=0.1)))
    assert certificate.passed
    assert [step.state for step in certificate.steps] == [
        "passed",
        "skipped",
        "passed",
        "skipped",
        "skipped",
        "skipped",
    ]


def test_an_adapter_of_zeros_has_no_effect(base: Path, tmp_path: Path) -> None:
    certificate = certify_adapter(request(base, save_adapter(base, tmp_path / "adapter", size=0.0)))
    assert not certificate.passed
    assert certificate.reason.startswith("The adapter has no effect")
    assert certificate.max_effect == 0.0


def test_a_merged_export_that_lost_a_little_fails(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def perturbed(base_folder: Path, adapter_folder: Path, target: Path) -> None:
        merge_adapter(base_folder, adapter_folder, target)
        tensors = load_file(target / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1.01
        save_file(tensors, target / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(certification, "merge_adapter", perturbed)
    certificate = certify_adapter(request(base, save_adapter(base, tmp_path / "adapter", size=0.1)))
    assert not certificate.passed
    assert {step.name for step in certificate.steps if step.state == "failed"} == {"merged"}
    assert certificate.reason.startswith("merged: The largest difference is")


def test_an_engine_that_leaves_the_adapter_out_fails(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1)
    without = save_adapter(base, tmp_path / "without", size=0.0)
    monkeypatch.setattr(certification, "AdapterRef", lambda name, folder: AdapterRef(name, str(without)))
    certificate = certify_adapter(request(base, adapter))
    assert {step.name for step in certificate.steps if step.state == "failed"} == {"engine", "engine_llama_cpp"}


def test_a_base_that_has_changed_since_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1)
    write_facts(adapter, AdapterFacts("tiny", weights_sha256(base)))
    assert certify_adapter(request(base, adapter)).passed
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += torch.full_like(tensors["model.norm.weight"], 0.1)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match="not those that this adapter") as caught:
        certify_adapter(request(base, adapter))
    assert caught.value.code == "base_changed"


def test_without_held_out_tokens_there_is_nothing_to_certify(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no held-out tokens"):
        certify_adapter(CertificationRequest(str(base), str(tmp_path), ()))


async def test_an_adapter_is_verified_on_its_held_out_tokens_or_on_the_demonstration(
    base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1)
    spec = ModelSpec("tiny", "causal_lm", (ModelSource("folder", str(base)),))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    request = VerifyRequest(Base(spec, str(tmp_path / "models")), str(adapter), str(scratch))
    first = json.loads(await run_short("verify_adapter", request, 200))
    write_held_out(adapter, some_sequences(2))
    second = json.loads(await run_short("verify_adapter", request, 200))
    assert (first["passed"], second["passed"]) == (True, True)
    assert (first["num_sequences"], second["num_sequences"]) == (6, 2)
    assert list(scratch.iterdir()) == []
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"has no adapter_model\.safetensors"):
        await run_short("verify_adapter", request, 200)


@pytest.mark.real_model
def test_the_embedded_model_says_the_same_in_all_forms(smollm2_folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(smollm2_folder, tmp_path / "adapter", size=0.1, targets=["q_proj", "v_proj"], r=8)
    sequences = tuple(map(tuple, some_sequences(2)))
    certificate = certify_adapter(CertificationRequest(str(smollm2_folder), str(adapter), sequences))
    assert certificate.passed, certificate.reason
    assert [step.state for step in certificate.steps] == ["passed"] * 6, certificate.steps
