"""Which adapter folders are served: PEFT's LoRA for linear layers, as safetensors and a configuration of known fields.

An adapter may come from a stranger, and PEFT's configuration can do much more than describe one: import modules,
match names by regular expressions, replace whole layers, change the base as it is loaded. So every field is either
understood here or has to hold the value that means nothing. Knows no torch, no PEFT and no numpy: API workers
import it.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import ModelLoadError, UnsafeModelFile
from mini_claude.models.model_files import check_files, load_json_object
from mini_claude.models.weight_files import TensorInfo, read_safetensors_header

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MAX_RANK: Final = 256

_PREFIX: Final = "base_model.model."
_TENSOR: Final = re.compile(r"base_model\.model\.([\w.]+)\.(?:(lora_[AB])\.weight|(lora_magnitude_vector))")
_PATTERN: Final = re.compile(r"[\w.]{1,200}")  # of rank_pattern: PEFT takes it for a regular expression
_DTYPES: Final = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of adapter_config.json that has an effect.

    `target_modules` are last parts of layer names, or whole ones; empty where the file has a regular expression. With
    `targets_all_layers` False it limits them further: the tensors then say which layers are meant.
    """

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    use_dora: bool
    target_modules: tuple[str, ...]
    targets_all_layers: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank(self, layer: str) -> int:
        """Of the layer's A and B."""
        return int(_value(self.rank_pattern, layer, self.r))

    def scale(self, layer: str) -> float:
        """What B A is multiplied by: alpha / r (Hu et al. 2021), with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023)."""
        rank = self.rank(layer)
        return _value(self.alpha_pattern, layer, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What a checked adapter folder holds: for each layer, called as in the base model ("model.layers.0.mlp.up_proj"),
    lora_A [r, in], lora_B [out, r] and, with DoRA, lora_magnitude_vector [out]."""

    folder: Path
    config: AdapterConfig
    layers: Mapping[str, Mapping[str, TensorInfo]]


def tensor_name(layer: str, part: str) -> str:
    """What PEFT calls `part` (lora_A, lora_B, lora_magnitude_vector) of a layer."""
    return f"{_PREFIX}{layer}.{part}" + (".weight" if part in ("lora_A", "lora_B") else "")


def check_adapter_folder(folder: Path) -> AdapterFiles:
    """What is in an adapter folder that is safe and complete.

    Raises `UnsafeModelFile` for anything that could execute, lead elsewhere or is not understood, `ModelLoadError`
    for what is missing or damaged.
    """
    if not folder.is_dir():
        raise ModelLoadError(f"{folder} is not a folder; name the folder that holds {CONFIG_FILE}.")
    check_files(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelLoadError(f"{folder} has no {name}; name the folder that PEFT's save_pretrained wrote.")
    config = parse_adapter_config(load_json_object(folder / CONFIG_FILE), folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    return AdapterFiles(folder, config, _layers(path, read_safetensors_header(path), config))


def parse_adapter_config(values: Mapping[str, Any], path: Path) -> AdapterConfig:
    """Raises `UnsafeModelFile` naming the first field that is not understood, or whose value is not."""
    for name, value in values.items():
        known = _READ.get(name) or _WITHOUT_EFFECT.get(name)
        if known is None:
            raise UnsafeModelFile(f"{path} has the field {name!r}, which is not known here; save it as plain LoRA.")
        if not known(value):
            raise UnsafeModelFile(f"{path} sets {name} to {str(value)[:80]!r}, which is not supported for adapters.")
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if name not in values:
            raise ModelLoadError(f"{path} lacks {name}; restore it from where the adapter came from.")
    targets = values["target_modules"]
    limits = (values.get(name) for name in ("layers_to_transform", "layers_pattern", "exclude_modules"))
    return AdapterConfig(
        r=values["r"],
        lora_alpha=float(values["lora_alpha"]),
        lora_dropout=float(values.get("lora_dropout") or 0.0),
        use_rslora=values.get("use_rslora", False),
        use_dora=values.get("use_dora", False),
        target_modules=() if isinstance(targets, str) else tuple(sorted(targets)),
        targets_all_layers=all(limit in (None, [], "") for limit in limits),
        rank_pattern=dict(values.get("rank_pattern") or {}),
        alpha_pattern={name: float(alpha) for name, alpha in (values.get("alpha_pattern") or {}).items()},
    )


def _layers(path: Path, tensors: Mapping[str, TensorInfo], config: AdapterConfig) -> dict[str, dict[str, TensorInfo]]:
    layers: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UnsafeModelFile(
                f"{path} holds {name[:120]!r}, which is no LoRA of a linear layer; whole layers, embeddings and biases "
                "are not supported in adapters."
            )
        if tensor.dtype not in _DTYPES:
            raise UnsafeModelFile(f"{path} holds {name} as {tensor.dtype}; only {', '.join(_DTYPES)} are supported.")
        layers.setdefault(match[1], {})[match[2] or match[3]] = tensor
    if not layers:
        raise ModelLoadError(f"{path} holds no tensors; the adapter would have no effect.")
    for layer, parts in layers.items():
        _check_layer(path, layer, parts, config)
    return dict(sorted(layers.items()))


def _check_layer(path: Path, layer: str, parts: Mapping[str, TensorInfo], config: AdapterConfig) -> None:
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if config.use_dora else set())
    if set(parts) != wanted:
        raise ModelLoadError(f"{path} has {sorted(parts)} of {layer} instead of {sorted(wanted)}; save it again.")
    a, b, rank = parts["lora_A"].shape, parts["lora_B"].shape, config.rank(layer)
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank or min(a + b) < 1:
        raise ModelLoadError(f"{path} has the shapes {a} and {b} for {layer}, which are not of rank {rank}.")
    if config.use_dora and parts["lora_magnitude_vector"].shape != (b[0],):
        raise ModelLoadError(f"{path} has a magnitude of the wrong shape for {layer}; save the adapter again.")
    names = config.target_modules
    if names and not any(f".{layer}".endswith(f".{name}") for name in names):
        raise ModelLoadError(f"{path} holds {layer}, which is not among the target_modules; save the adapter again.")


def _value(pattern: Mapping[str, float], layer: str, default: float) -> float:
    """As PEFT finds it: the first key that is the module's name or the end of it."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_alpha(value: object) -> bool:
    return _is_number(value) and 0 < value <= 1e6  # type: ignore[operator]


def _is_flag(value: object) -> bool:
    return type(value) is bool


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_empty(value: object) -> bool:
    return value in (None, False, [], {})


def _is_pattern(is_item: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        return value is None or (
            isinstance(value, dict)
            and all(_PATTERN.fullmatch(key) is not None and is_item(item) for key, item in value.items())
        )

    return check


_Checks = Mapping[str, Callable[[object], bool]]
_READ: Final[_Checks] = {
    "peft_type": lambda value: value == "LORA",
    "r": _is_rank,
    "lora_alpha": _is_alpha,
    "lora_dropout": lambda value: _is_number(value) and 0 <= value < 1,  # type: ignore[operator]
    "target_modules": lambda value: isinstance(value, str) or (_is_names(value) and value != []),
    "use_rslora": _is_flag,
    "use_dora": _is_flag,
    "rank_pattern": _is_pattern(_is_rank),
    "alpha_pattern": _is_pattern(_is_alpha),
    "layers_to_transform": lambda value: value is None or type(value) is int or isinstance(value, list),
    "layers_pattern": lambda value: _is_text(value) or _is_names(value),
    "exclude_modules": lambda value: _is_text(value) or _is_names(value),
}
_WITHOUT_EFFECT: Final[_Checks] = {
    "task_type": lambda value: value in (None, "CAUSAL_LM"),
    "base_model_name_or_path": _is_text,
    "revision": _is_text,
    "peft_version": _is_text,
    "inference_mode": _is_flag,
    "fan_in_fan_out": _is_flag,  # PEFT sets it as the layers are
    "bias": lambda value: value == "none",
    # Others than these change the base's weights before they add to them.
    "init_lora_weights": lambda value: value in (True, False, "gaussian", "orthogonal"),
    "qalora_group_size": lambda value: type(value) is int,  # read with use_qalora alone
    "megatron_core": lambda value: value in (None, "megatron.core"),  # a module that PEFT would import
    **dict.fromkeys(
        (
            *("auto_mapping", "modules_to_save", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
            *("velora_config", "monteclora_config", "arrow_config", "kasa_config", "alora_invocation_tokens"),
            *("trainable_token_indices", "layer_replication", "runtime_config", "lora_bias", "target_parameters"),
            *("use_qalora", "use_bdlora", "ensure_weight_tying", "megatron_config"),
        ),
        _is_empty,
    ),
}
