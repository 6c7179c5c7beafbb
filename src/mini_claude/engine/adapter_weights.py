"""An adapter's weights as plain arrays that fit a certain model. Torch-free, so that any thread may read them.

The engine's thread has better things to do than to read files, and torch may be used in no other (torch_engine.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mini_claude.errors import ModelLoadError
from mini_claude.models.adapter_files import AdapterFiles, check_adapter_folder, tensor_name
from mini_claude.models.adapter_tensors import Array, read_adapter_tensors

_NUM_NAMED: Final = 3  # layers named in an error; the rest is a number


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A linear layer of the model that an adapter may change."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """What LoRA adds to a layer: scale * B A, with A [r, in] and B [out, r]; DoRA's magnitude is [out]."""

    a: Array
    b: Array
    scale: float
    magnitude: Array | None


AdapterWeights = Mapping[str, LayerWeights]  # by layer


def read_adapter(folder: Path, layers: Mapping[str, LayerShape]) -> AdapterWeights:
    """The adapter in `folder`, in float32, for the model with these layers.

    Raises `UnsafeModelFile` or `ModelLoadError`; nothing but headers has been read before shapes are known to fit.
    """
    files = check_adapter_folder(folder)
    _check_fit(files, layers)
    tensors = read_adapter_tensors(folder)
    return {
        layer: LayerWeights(
            tensors[tensor_name(layer, "lora_A")],
            tensors[tensor_name(layer, "lora_B")],
            files.config.scale(layer),
            tensors.get(tensor_name(layer, "lora_magnitude_vector")),
        )
        for layer in files.layers
    }


def _check_fit(files: AdapterFiles, layers: Mapping[str, LayerShape]) -> None:
    adapter = f"The adapter in {files.folder}"
    if unknown := [layer for layer in files.layers if layer not in layers]:
        raise ModelLoadError(
            f"{adapter} was made for another model or for layers that cannot be adapted here: this model has no "
            f"linear layer {_named(unknown)} that reads every token."
        )
    for layer, parts in files.layers.items():
        needed = LayerShape(parts["lora_A"].shape[1], parts["lora_B"].shape[0])
        if needed != layers[layer]:
            raise ModelLoadError(
                f"{adapter} was made for another model: layer {layer} has {needed.in_features} inputs and "
                f"{needed.out_features} outputs there, and {layers[layer].in_features} and "
                f"{layers[layer].out_features} here."
            )
    if lacking := [layer for layer in layers if layer not in files.layers and _is_target(files, layer)]:
        raise ModelLoadError(
            f"{adapter} lacks the tensors of {_named(lacking)}, which its target_modules name; it is incomplete or "
            "made for a smaller model."
        )


def _is_target(files: AdapterFiles, layer: str) -> bool:
    """Whether target_modules ask for this layer; where they are an expression, the tensors' names alone decide."""
    names = files.config.target_modules if files.config.targets_all_layers else ()
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def _named(layers: list[str]) -> str:
    rest = len(layers) - _NUM_NAMED
    return ", ".join(layers[:_NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")
