"""The GGUF exports, run by llama.cpp itself: what the tuned model says in transformers, it says there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mini_claude.errors import ModelLoadError, StorageError, UnsupportedExport
from mini_claude.training.adapter_gguf import write_adapter_gguf
from mini_claude.training.gguf_parity import GGUFForms
from mini_claude.training.llama_cpp_logits import open_llama_cpp
from mini_claude.training.merged_gguf import GGUFTemplate
from mini_claude.training.parity import Certificate, Form, LogProbs, certify, windows_of
from mini_claude.training.transformers_logits import read_trainer
from mini_claude.types import GGUFType

from .tiny_adapters import save_adapter, save_base, some_sequences
from .tiny_gguf import save_gguf

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "gpt2": {},
}
WINDOWS = windows_of(some_sequences(2))
# llama.cpp looks GELU up in a table of 16-bit numbers.
TOLERANCE = {"gpt2": 6e-3, "gemma3_text": 6e-3}


def certified(base_gguf: Path | None, base: Path, adapter: Path) -> Certificate:
    trainer = Form("trainer", 0.0, lambda windows: read_trainer(base, adapter, windows))
    forms = GGUFForms(base_gguf, base, adapter).forms()
    return certify(trainer, forms, WINDOWS, identity={}, environment={})


def largest(rows: Sequence[LogProbs], wanted: Sequence[LogProbs]) -> float:
    return max(float(np.nanmax(np.abs(a - b))) for a, b in zip(rows, wanted, strict=True))


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2, "h.1.attn.c_attn": 3}, "alpha_pattern": {"mlp.c_proj": 3}},
    ],
    ids=["plain", "rsLoRA", "scales that differ"],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_exports_say_in_llama_cpp_what_the_trainer_says(
    tmp_path: Path, architecture: str, lora: dict[str, Any]
) -> None:
    base = save_base(tmp_path / "base", architecture, **ARCHITECTURES[architecture])
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1, **lora)
    certificate = certified(save_gguf(base, tmp_path / "base.gguf"), base, adapter)
    assert certificate.passed, certificate.reason
    assert [step.state for step in certificate.steps] == ["passed"] * 3
    for step in certificate.steps:
        assert step.max_difference is not None
        assert step.max_difference < TOLERANCE.get(architecture, 1e-4)
    assert certificate.max_effect is not None
    assert certificate.max_effect > 1


def test_a_tied_output_layer_becomes_a_tensor_of_its_own(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1, targets=["lm_head", "q_proj"])
    template = GGUFTemplate(save_gguf(base, tmp_path / "base.gguf"))
    template.write(base, adapter, tmp_path / "merged.gguf", "f32")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "merged.gguf").tensors}
    assert names - {tensor.name for tensor in gguf.GGUFReader(tmp_path / "base.gguf").tensors} == {"output.weight"}
    wanted = read_trainer(base, adapter, WINDOWS).tuned
    with open_llama_cpp(tmp_path / "merged.gguf", wanted[0].shape[1]) as model:
        assert largest([model.log_probs(window, adapter=False) for window in WINDOWS], wanted) < 1e-4


@pytest.mark.parametrize(("tensor_type", "tolerance"), [("f32", 1e-4), ("f16", 0.05), ("q8_0", 1.0)])
def test_every_tensor_type_is_written(tmp_path: Path, tensor_type: GGUFType, tolerance: float) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1)
    template = GGUFTemplate(save_gguf(base, tmp_path / "base.gguf"))
    template.write(base, adapter, tmp_path / "merged.gguf", tensor_type)
    reader = gguf.GGUFReader(tmp_path / "merged.gguf")
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) == 2}
    assert kinds == {tensor_type.upper()}
    assert {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) == 1} == {"F32"}
    wanted = read_trainer(base, adapter, WINDOWS)
    with open_llama_cpp(tmp_path / "merged.gguf", wanted.tuned[0].shape[1]) as model:
        found = [model.log_probs(window, adapter=False) for window in WINDOWS]
    assert largest(found, wanted.tuned) < tolerance
    assert wanted.base is not None
    assert largest(found, wanted.base) > tolerance


def test_rows_that_do_not_divide_into_blocks_stay_in_16_bits(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", intermediate_size=80)
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1)
    GGUFTemplate(save_gguf(base, tmp_path / "base.gguf")).write(base, adapter, tmp_path / "merged.gguf", "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "merged.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # [64, 80]
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_a_mixed_file_has_attention_in_16_bits(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    GGUFTemplate(save_gguf(base, tmp_path / "base.gguf")).write(base, None, tmp_path / "mixed.gguf", "mixed")
    tensors = gguf.GGUFReader(tmp_path / "mixed.gguf").tensors
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors if len(tensor.shape) == 2}
    assert {kind for name, kind in kinds.items() if ".attn_" in name} == {"F16"}
    assert {kind for name, kind in kinds.items() if ".attn_" not in name} == {"Q8_0"}


def test_tokenizer_and_facts_are_those_of_the_base(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    GGUFTemplate(save_gguf(base, tmp_path / "base.gguf")).write(base, adapter, tmp_path / "merged.gguf", "f16")
    before, after = (gguf.GGUFReader(tmp_path / f"{name}.gguf").fields for name in ("base", "merged"))
    added = {"general.file_type", "general.quantization_version"}
    assert after.keys() - added == before.keys() - added
    for name in before.keys() - added:
        if not name.startswith("GGUF."):
            assert after[name].contents() == before[name].contents(), name
    assert after["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16


def test_an_adapter_that_is_loaded_leaves_the_base_alone_when_asked(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1)
    base_gguf = save_gguf(base, tmp_path / "base.gguf")
    write_adapter_gguf(base, adapter, tmp_path / "adapter.gguf")
    wanted = read_trainer(base, adapter, WINDOWS)
    assert wanted.base is not None
    with open_llama_cpp(base_gguf, wanted.base[0].shape[1], adapter_gguf=tmp_path / "adapter.gguf") as model:
        for window, tuned, plain in zip(WINDOWS, wanted.tuned, wanted.base, strict=True):
            assert largest([model.log_probs(window, adapter=True)], [tuned]) < 1e-4
            assert largest([model.log_probs(window, adapter=False)], [plain]) < 1e-4
            assert largest([tuned], [plain]) > 1


def test_dora_is_written_merged_and_refused_as_an_adapter(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", size=0.1, use_dora=True)
    with pytest.raises(UnsupportedExport, match="export the merged model") as caught:
        write_adapter_gguf(base, adapter, tmp_path / "adapter.gguf")
    assert caught.value.code == "unsupported_export"
    assert not (tmp_path / "adapter.gguf").exists()
    certificate = certified(save_gguf(base, tmp_path / "base.gguf"), base, adapter)
    assert certificate.passed, certificate.reason
    assert [step.state for step in certificate.steps] == ["skipped", "passed", "skipped"]


def test_a_model_that_came_from_elsewhere_has_no_merged_gguf(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(UnsupportedExport, match="did not come from a GGUF file") as caught:
        GGUFTemplate(None)
    assert caught.value.code == "unsupported_export"
    certificate = certified(None, base, adapter)
    assert certificate.passed
    assert {step.state for step in certificate.steps} == {"skipped"}


def test_an_architecture_without_a_known_layout_is_refused_by_name(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "gpt_neox")
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(UnsupportedExport, match="of gpt_neox models") as caught:
        write_adapter_gguf(base, adapter, tmp_path / "adapter.gguf")
    assert caught.value.code == "unsupported_export"


def test_a_gguf_of_another_model_is_noticed(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    other = save_base(tmp_path / "other", num_hidden_layers=1)
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(ModelLoadError, match="was the model made from it"):
        GGUFTemplate(save_gguf(other, tmp_path / "other.gguf")).write(base, adapter, tmp_path / "m.gguf", "f32")
    assert not (tmp_path / "m.gguf").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    before = set(tmp_path.iterdir())

    def full(_writer: gguf.GGUFWriter) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(StorageError) as caught:
        write_adapter_gguf(base, adapter, tmp_path / "adapter.gguf")
    assert caught.value.code == "disk_full"
    assert set(tmp_path.iterdir()) == before


def test_a_file_that_is_no_gguf_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF and then nothing that makes sense")
    with pytest.raises(ModelLoadError, match="cannot load"), open_llama_cpp(tmp_path / "x.gguf", 10):
        pass
