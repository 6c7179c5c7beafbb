"""Adapters made by PEFT itself, and PEFT's own greedy answers to compare with."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from mini_claude.types import AdapterRef

NUM_TOKENS = 20
TARGETS: dict[str, list[str]] = {"gpt2": ["c_attn", "c_proj", "c_fc"]}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class PeftAdapter:
    """A saved adapter and the model that it was injected into."""

    ref: AdapterRef
    model: PreTrainedModel

    def answer(self, prompt: Sequence[int]) -> list[int]:
        """Greedy tokens of the reference."""
        return generated(self.model, prompt)


def generated(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def make_adapter(model: PreTrainedModel, folder: Path, *, seed: int = 1, **options: object) -> PeftAdapter:
    """Inject a random adapter into `model`, in place, and save it; every trained tensor differs from its start."""
    architecture = model.config.model_type
    settings: dict[str, object] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS.get(architecture, ALL_LINEAR),
        "fan_in_fan_out": architecture == "gpt2",
        "task_type": "CAUSAL_LM",
    }
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses what transformers has deprecated
        peft_model = get_peft_model(model, LoraConfig(**settings | options))
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
            elif "lora_magnitude_vector" in name:
                parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
        peft_model.eval().save_pretrained(str(folder))
    return PeftAdapter(AdapterRef(f"tiny:{folder.name}@1", str(folder)), model)
