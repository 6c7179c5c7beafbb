"""How llama.cpp calls and lays out a Hugging Face model's tensors in GGUF files.

Names come from the `gguf` package. Two layouts differ: Llama's rotary embedding pairs neighbouring elements of a head
there and the two halves of a head here, so rows of q and k trade places; GPT-2's Conv1D keeps [in, out]. Torch-free.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from mini_claude.errors import UnsupportedExport
from mini_claude.models.model_files import load_json_object

# By model_type. Others need more than new names (fused or reordered projections), and have not been tried.
_ARCHITECTURES: Final[Mapping[str, gguf.MODEL_ARCH]] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
}
_CONV1D: Final = ("c_attn", "c_proj", "c_fc")

Matrix = NDArray[np.float32]


class GGUFLayout:
    """Of one model."""

    def __init__(self, model_folder: Path) -> None:
        """Raises `UnsupportedExport` for an architecture that is not known here."""
        config: dict[str, Any] = load_json_object(model_folder / "config.json")
        model_type = str(config.get("model_type"))
        if model_type not in _ARCHITECTURES:
            raise UnsupportedExport(
                f"GGUF files of {model_type} models cannot be written here (only of {', '.join(_ARCHITECTURES)}); "
                "export the merged safetensors instead."
            )
        self._architecture = _ARCHITECTURES[model_type]
        num_heads = config.get("num_attention_heads") or config.get("n_head") or 1
        self._heads = {"q_proj": num_heads, "k_proj": config.get("num_key_value_heads") or num_heads}
        num_layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
        self._names = gguf.get_tensor_name_map(self._architecture, num_layers)

    @property
    def architecture(self) -> str:
        """As `general.architecture` has it."""
        return str(gguf.MODEL_ARCH_NAMES[self._architecture])

    def name(self, tensor: str) -> str | None:
        """The GGUF name of a tensor ("model.layers.0.self_attn.q_proj.weight"); None where there is none."""
        name: str | None = self._names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        return name

    def rows(self, layer: str, matrix: Matrix) -> Matrix:
        """`matrix`, [out, any] of a layer ("model.layers.0.self_attn.q_proj"), with its rows in GGUF's order."""
        heads = self._heads.get(layer.rpartition(".")[2])
        if heads is None or self._architecture != gguf.MODEL_ARCH.LLAMA:
            return matrix
        return matrix.reshape(heads, 2, -1, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)

    def weight(self, layer: str, weight: Matrix) -> Matrix:
        """A layer's weight as [out, in] with its rows in GGUF's order."""
        is_conv1d = self._architecture == gguf.MODEL_ARCH.GPT2 and layer.rpartition(".")[2] in _CONV1D
        return self.rows(layer, weight.T if is_conv1d else weight)
