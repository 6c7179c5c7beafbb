"""Which weights are trained: all of them, or a low-rank adapter beside frozen ones.

LoRA (Hu et al. 2021) adds B A x * alpha / r to what a frozen layer makes of x; A is [r, in], and B is [out, r] and
begins as zeros. rsLoRA divides by sqrt(r) instead, DoRA (Liu et al. 2024) also trains the length of each weight row.
With a quantised base this is QLoRA. The layers themselves are PEFT's.
"""

import warnings
from pathlib import Path
from typing import Final, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mini_claude.errors import InvalidRequest
from mini_claude.models.weights import load_weights
from mini_claude.training.arguments import LoraSettings, TrainingArguments, check_trainable
from mini_claude.training.attention import use_flat_rows
from mini_claude.training.objectives import Model
from mini_claude.types import DTypeName, LoadOptions

ALL_LINEAR: Final = "all-linear"


class Strategy(Protocol):
    """How a model is made trainable and what of it is the result."""

    def load(self, model_folder: Path, device: torch.device, dtype: DTypeName) -> Model:
        """The model with gradients on what is trained and on nothing else. `dtype` is what the matmuls compute in."""

    def save(self, model: Model, folder: Path) -> None:
        """Write the result's files into an existing folder."""


class FullFineTuning:
    """Every weight is trained; weights are float32 whatever the matmuls compute in, or small steps would be lost."""

    def __init__(self, arguments: TrainingArguments) -> None:
        self._arguments = arguments

    def load(self, model_folder: Path, device: torch.device, dtype: DTypeName) -> Model:
        """All weights in float32."""
        del dtype
        model = load_weights(model_folder, LoadOptions(device=_place(device), dtype="float32"))
        use_flat_rows(model)
        model.requires_grad_(True)
        _checkpoint_gradients(model, self._arguments)
        return model

    def save(self, model: Model, folder: Path) -> None:
        """As transformers saves a model."""
        model.save_pretrained(folder)


class LowRankAdapter:
    """LoRA, rsLoRA, DoRA; QLoRA with a quantised base."""

    def __init__(self, lora: LoraSettings, arguments: TrainingArguments) -> None:
        self._lora = lora
        self._arguments = arguments

    def load(self, model_folder: Path, device: torch.device, dtype: DTypeName) -> Model:
        """The base in `dtype` or quantised, the adapter in float32. Raises `InvalidRequest` for unknown targets."""
        options = LoadOptions(device=_place(device), dtype=dtype, quantization=self._arguments.quantization)
        model = load_weights(model_folder, options)
        if self._arguments.quantization is not None:
            _keep_differentiable(model)
        use_flat_rows(model)
        model = self.adapt(model)
        _checkpoint_gradients(model.get_base_model(), self._arguments)
        return model

    def adapt(self, model: PreTrainedModel) -> PeftModel:
        """`model` with an adapter drawn from torch's random numbers, inserted in place."""
        layers = linear_layers(model)
        targets = _targets(self._lora.target_modules, layers)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self._lora.r,
            lora_alpha=self._lora.lora_alpha,
            lora_dropout=self._lora.lora_dropout,
            target_modules=sorted(targets),
            use_rslora=self._lora.use_rslora,
            use_dora=self._lora.use_dora,
            fan_in_fan_out=any(isinstance(layer, Conv1D) for name in targets for layer in layers[name]),
        )
        with warnings.catch_warnings():
            # PEFT asks transformers by an old name whether activations are checkpointed.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")
            # Where linear layers are of both kinds, PEFT sets fan_in_fan_out right by layer, and warns of it.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
            return get_peft_model(model, config)

    def save(self, model: Model, folder: Path) -> None:
        """PEFT's two files, without the base's path, which means nothing elsewhere."""
        assert isinstance(model, PeftModel)
        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(on_cpu, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = model.peft_config["default"]
        base, config.base_model_name_or_path, config.inference_mode = config.base_model_name_or_path, None, True
        config.save_pretrained(folder)
        config.base_model_name_or_path, config.inference_mode = base, False


def create_strategy(lora: LoraSettings, arguments: TrainingArguments) -> Strategy:
    """The strategy for `arguments.method`. Raises `InvalidRequest` for arguments that do not go with it."""
    check_trainable(lora, arguments)
    return FullFineTuning(arguments) if arguments.method == "full" else LowRankAdapter(lora, arguments)


def linear_layers(model: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """The layers that an adapter can be put beside, by the last part of their names; the LM head is not one.

    Quantised layers are subclasses of nn.Linear; GPT-2's Conv1D is a linear layer with its weight transposed.
    """
    layers: dict[str, list[nn.Module]] = {}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            layers.setdefault(name.rpartition(".")[2], []).append(module)
    return layers


def _targets(wanted: tuple[str, ...], layers: dict[str, list[nn.Module]]) -> set[str]:
    if ALL_LINEAR in wanted:
        return set(layers)
    if not wanted or (unknown := sorted(set(wanted) - layers.keys())):
        raise InvalidRequest(
            f"This model has no layers named {', '.join(unknown) if wanted else '(none given)'}; it has "
            f"{', '.join(sorted(layers))}, and {ALL_LINEAR} stands for all of these.",
            param="target_modules",
        )
    return set(wanted)


def _place(device: torch.device) -> str:
    """With several processes, accelerate calls the one CPU cpu:0, cpu:1, ..."""
    return "cpu" if device.type == "cpu" else str(device)


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights the first time that they are used in evaluation mode.

    It does so on CPUs with AVX512-BF16, for good, and no gradient goes through the new layout.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _checkpoint_gradients(model: PreTrainedModel, arguments: TrainingArguments) -> None:
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable()  # gradient checkpointing's new name
        model.disable_input_require_grads()  # only the reentrant kind needs gradients on frozen embeddings


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name; shared ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
