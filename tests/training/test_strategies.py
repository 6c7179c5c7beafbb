"""Which weights change, and what comes out of it."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from mini_claude.errors import InvalidRequest
from mini_claude.training.arguments import LoraSettings, TrainingArguments
from mini_claude.training.strategies import LowRankAdapter, create_strategy, linear_layers
from mini_claude.types import Quantization

from ..engine.conftest import CONFIGS, build
from .tiny_training import bfloat16_possible, conversations, preferences, save_model, train, weights


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_all_linear_finds_every_linear_layer_but_the_head(architecture: str) -> None:
    model = build(architecture)
    adapted = LowRankAdapter(LoraSettings(r=2), TrainingArguments()).adapt(model)
    names = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name}
    expected = {
        name.rpartition(".")[2]
        for name, module in build(architecture).named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and "lm_head" not in name and "embed_out" not in name
    }
    assert names == expected
    assert len(names) >= 3


def test_gpt2s_transposed_layers_are_adapted() -> None:
    adapted = LowRankAdapter(LoraSettings(r=2), TrainingArguments()).adapt(build("gpt2"))
    shapes = {name.split(".base_model.model.")[-1]: p.shape for name, p in adapted.named_parameters() if "lora" in name}
    assert len(shapes) == 2 * 2 * 4  # A and B, two layers, c_attn and c_fc and two c_proj
    assert next(shape for name, shape in shapes.items() if "c_attn.lora_B" in name) == (96, 2)
    assert set(linear_layers(build("gpt2"))) == {"c_attn", "c_fc", "c_proj"}


def test_unknown_targets_are_refused_with_what_there_is() -> None:
    strategy = LowRankAdapter(LoraSettings(target_modules=("q_proj", "qproj", "W_pack")), TrainingArguments())
    with pytest.raises(InvalidRequest, match=r"no layers named W_pack, qproj; it has down_proj, gate_proj") as caught:
        strategy.adapt(build("llama"))
    assert caught.value.param == "target_modules"
    with pytest.raises(InvalidRequest, match="none given"):
        LowRankAdapter(LoraSettings(target_modules=()), TrainingArguments()).adapt(build("llama"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_an_adapter_learns_and_the_base_stays_as_it_was(
    tmp_path: Path, architecture: str, variant: dict[str, bool]
) -> None:
    base = save_model(tmp_path / "base", architecture)
    before = base.joinpath("model.safetensors").read_bytes()
    result = train(base, tmp_path / "job", lora=LoraSettings(r=4, **variant), learning_rate=3e-2)  # type: ignore[arg-type]
    losses = [evaluation.loss for evaluation in result.state.evaluations]
    assert losses[-1] < losses[0] - 0.5
    assert base.joinpath("model.safetensors").read_bytes() == before

    assert result.output_folder is not None
    config = json.loads((result.output_folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["use_dora"]) == ("LORA", 4, variant.get("use_dora", False))
    assert config["base_model_name_or_path"] is None
    assert all("lora_" in name for name in weights(result))
    assert sorted(path.name for path in result.output_folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_peft_reads_the_result_and_gets_the_same_loss(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path, max_steps=4)
    assert result.output_folder is not None
    base = AutoModelForCausalLM.from_pretrained(llama)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # PEFT's own
        model = PeftModel.from_pretrained(base, result.output_folder).eval()
    total = weight = 0.0
    for example in result.data.held_out:
        labels = [t if s else -100 for t, s in zip(example.token_ids, example.supervised, strict=True)]  # type: ignore[union-attr]
        number = sum(example.supervised)  # type: ignore[union-attr]
        with torch.no_grad():
            output = model(input_ids=torch.tensor([example.token_ids]), labels=torch.tensor([labels]))  # type: ignore[union-attr]
        total, weight = total + output.loss.item() * number, weight + number
    assert result.metrics["eval_loss"] == pytest.approx(total / weight, rel=1e-4)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_qlora_learns_beside_a_quantised_base(tmp_path: Path, quantization: Quantization) -> None:
    pytest.importorskip("bitsandbytes")
    base = save_model(tmp_path / "base", hidden_size=64, intermediate_size=128, head_dim=16)  # nf4 has blocks of 64
    result = train(base, tmp_path / "job", learning_rate=3e-2, quantization=quantization)
    losses = [evaluation.loss for evaluation in result.state.evaluations]
    assert losses[-1] < losses[0] - 0.5
    assert {tensor.dtype for tensor in weights(result).values()} == {torch.float32}


def test_full_fine_tuning_changes_every_layer(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path, method="full", max_steps=4, learning_rate=1e-3)
    before, after = load_file(llama / "model.safetensors"), weights(result)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    losses = [evaluation.loss for evaluation in result.state.evaluations]
    assert losses[-1] < losses[0]


def test_bfloat16_computes_in_16_bits_and_keeps_the_adapter_in_32(llama: Path, tmp_path: Path) -> None:
    with bfloat16_possible():
        result = train(llama, tmp_path, learning_rate=3e-2, dtype="bfloat16")
    losses = [evaluation.loss for evaluation in result.state.evaluations]
    assert losses[-1] < losses[0] - 0.5
    assert {tensor.dtype for tensor in weights(result).values()} == {torch.float32}


def test_float16_is_refused_without_a_gpu(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="needs a GPU") as caught:
        train(llama, tmp_path, dtype="float16")
    assert caught.value.param == "dtype"


def test_dpo_prefers_the_chosen_answers_more_and_more(llama: Path, tmp_path: Path) -> None:
    result = train(llama, tmp_path, examples=preferences(40), objective="dpo", max_steps=10)
    before, after = result.state.evaluations[0].metrics, result.state.evaluations[-1].metrics
    assert before["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert after["loss"] < 0.5
    assert after["margin"] > 0.3
    assert after["accuracy"] == 1.0


def test_contradictory_arguments_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="use method lora") as caught:
        create_strategy(LoraSettings(), TrainingArguments(method="full", quantization="nf4"))
    assert caught.value.param == "training_args.quantization"
    with pytest.raises(InvalidRequest, match="only an adapter leaves"):
        create_strategy(LoraSettings(), TrainingArguments(method="full", objective="dpo"))
    with pytest.raises(InvalidRequest, match="chosen and a rejected"):
        train(llama, tmp_path, examples=conversations(5), objective="dpo")
    with pytest.raises(InvalidRequest, match="chosen and a rejected"):
        train(llama, tmp_path, examples=preferences(5))


def test_gradient_checkpointing_gives_the_same_adapter(llama: Path, tmp_path: Path) -> None:
    plain = weights(train(llama, tmp_path / "plain", max_steps=3))
    checkpointed = weights(train(llama, tmp_path / "checkpointed", max_steps=3, gradient_checkpointing=True))
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)
