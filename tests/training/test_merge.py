"""The merged export is what PEFT itself would merge, and plain transformers loads it."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mini_claude.errors import Conflict, ModelLoadError, StorageError
from mini_claude.training.merge import merge_adapter
from mini_claude.training.merged_weights import MergedWeights

from .tiny_adapters import load, load_adapted, save_adapter, save_base, some_sequences

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "DoRA and rsLoRA": {"use_dora": True, "use_rslora": True},
    "ranks and alphas of their own": {
        "targets": ["o_proj", "down_proj", "c_attn", "c_proj"],
        "rank_pattern": {"layers.0.self_attn.o_proj": 2, "h.1.attn.c_attn": 3},
        "alpha_pattern": {"down_proj": 3, "mlp.c_proj": 5},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_merged_weights_are_those_of_peft(tmp_path: Path, architecture: str, variant: str) -> None:
    base = save_base(tmp_path / "base", architecture)
    adapter = save_adapter(base, tmp_path / "adapter", **VARIANTS[variant])
    merge_adapter(base, adapter, tmp_path / "merged")
    expected = load_adapted(base, adapter).merge_and_unload()
    merged = load(tmp_path / "merged")
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), parameter, atol=1e-6, rtol=1e-6, msg=name)
    assert MergedWeights(base, adapter).changed


def test_merged_logits_are_those_of_the_adapter(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "gpt2")
    adapter = save_adapter(base, tmp_path / "adapter", use_dora=True)
    merge_adapter(base, adapter, tmp_path / "merged")
    ids = torch.tensor([some_sequences()[0]])
    with torch.inference_mode():
        expected = load_adapted(base, adapter)(ids).logits
        torch.testing.assert_close(load(tmp_path / "merged")(ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert (load(base)(ids).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapted_output_layer_is_untied_from_the_embeddings(tmp_path: Path, architecture: str) -> None:
    base = save_base(tmp_path / "base", architecture, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    adapter = save_adapter(base, tmp_path / "adapter", targets=["lm_head"], ensure_weight_tying=False)
    merge_adapter(base, adapter, tmp_path / "merged")
    ids = torch.tensor([some_sequences()[0]])
    with torch.inference_mode():
        expected = load_adapted(base, adapter)(ids).logits
        torch.testing.assert_close(load(tmp_path / "merged")(ids).logits, expected, atol=1e-4, rtol=1e-4)
    embeddings = load(tmp_path / "merged").get_input_embeddings().weight
    torch.testing.assert_close(embeddings, load(base).get_input_embeddings().weight)


def test_tied_embeddings_stay_tied_when_only_other_layers_change(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = save_adapter(base, tmp_path / "adapter")
    merge_adapter(base, adapter, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is True
    merged = load(tmp_path / "merged")
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight


def test_a_bfloat16_base_keeps_its_untouched_tensors_and_loses_nothing_of_the_adapter(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(base, tmp_path / "adapter", targets=["q_proj"])
    merge_adapter(base, adapter, tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert before.keys() == after.keys()
    changed = {name for name in before if after[name].dtype == torch.float32}
    assert {name.split(".")[-2] for name in changed} == {"q_proj"}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - changed)
    expected = load_adapted(base, adapter).merge_and_unload()
    torch.testing.assert_close(
        load(tmp_path / "merged").get_parameter("model.layers.0.self_attn.q_proj.weight"),
        expected.get_parameter("model.layers.0.self_attn.q_proj.weight"),
        atol=1e-6,
        rtol=1e-6,
    )


def test_weights_in_several_files_are_merged_into_one(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    load(base).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    (tmp_path / "sharded" / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    merge_adapter(base, adapter, tmp_path / "one")
    merge_adapter(tmp_path / "sharded", adapter, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_tokenizer_configuration_and_chat_template_come_along(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    merge_adapter(base, save_adapter(base, tmp_path / "adapter"), tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(Conflict, match="exists already"):
        merge_adapter(base, adapter, base)
    assert load(base)


def test_no_more_than_two_tensors_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    original = MergedWeights.read
    seen: list[weakref.ref[torch.Tensor]] = []

    def read(self: MergedWeights, name: str) -> torch.Tensor:
        tensor = original(self, name)
        seen.append(weakref.ref(tensor))
        assert sum(reference() is not None for reference in seen) <= 2
        return tensor

    monkeypatch.setattr(MergedWeights, "read", read)
    merge_adapter(base, adapter, tmp_path / "merged")
    assert len(seen) == len(load_file(base / "model.safetensors"))


@pytest.mark.parametrize("number", range(6))
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    before = set(tmp_path.iterdir())
    calls = 0
    original = MergedWeights.read

    def read(self: MergedWeights, name: str) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            raise OSError(28, "No space left on device")
        return original(self, name)

    monkeypatch.setattr(MergedWeights, "read", read)
    with pytest.raises(StorageError) as caught:
        merge_adapter(base, adapter, tmp_path / "merged")
    assert caught.value.code == "disk_full"
    assert set(tmp_path.iterdir()) == before


def test_an_adapter_for_another_model_is_refused_by_the_layer(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    other = save_base(tmp_path / "other", hidden_size=32)
    adapter = save_adapter(base, tmp_path / "adapter", targets=["q_proj"])
    with pytest.raises(ModelLoadError, match=r"another model: its model\.layers\.0\.self_attn\.q_proj is \[64, 64\]"):
        merge_adapter(other, adapter, tmp_path / "merged")
