"""A tuned model as one GGUF file: the base's own GGUF with the merged weights in the place of its tensors.

Tokenizer, chat template and every other fact are copied from the base's file, so the export cannot differ from it in
anything but the weights. A model that did not come from a GGUF has no such file.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from mini_claude.errors import ModelLoadError, UnsupportedExport
from mini_claude.models.gguf_array import GGUFArray
from mini_claude.training.complete_folder import complete_file
from mini_claude.training.gguf_layout import GGUFLayout
from mini_claude.training.merged_weights import MergedWeights
from mini_claude.types import MadeGGUF

_TYPES: Final = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "mixed": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_WRITTEN_ANEW: Final = ("general.architecture", "general.file_type", "general.quantization_version")


class GGUFTemplate:
    """A base model's GGUF file, read once for several exports."""

    def __init__(self, base_gguf: Path | None) -> None:
        """Raises `UnsupportedExport` for a model without such a file."""
        if base_gguf is None:
            raise UnsupportedExport(
                "This model did not come from a GGUF file, so there is none to take the tokenizer from; export the "
                "merged safetensors and convert them with llama.cpp's convert_hf_to_gguf.py."
            )
        self.path = base_gguf
        self._base = gguf.GGUFReader(base_gguf)

    def write(self, base_folder: Path, adapter_folder: Path | None, target: Path, tensor_type: MadeGGUF) -> None:
        """Write the merged model, or without an adapter the base; `target` appears complete or not at all.

        `base_folder` was made from this file. Memory: about three times the largest tensor. Raises `UnsupportedExport`
        for an architecture without a known layout, `UnsafeModelFile`, `ModelLoadError`, `StorageError`.
        """
        layout = GGUFLayout(base_folder)
        tensors = _Tensors(self._base, layout, MergedWeights(base_folder, adapter_folder), tensor_type)
        with complete_file(target) as part, closing(gguf.GGUFWriter(part, layout.architecture)) as writer:
            _copy_facts(self._base, writer)
            writer.add_file_type(_TYPES[tensor_type][1])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for name, shape, kind in tensors.descriptions():
                num_bytes = int(np.prod(gguf.quant_shape_to_byte_shape(shape, kind), dtype=np.int64))
                writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for data in tensors.data():
                writer.write_tensor_data(GGUFArray.of(data))
            writer.flush()


class _Tensors:
    """What the new file holds, in the order of the base's."""

    def __init__(
        self, base: gguf.GGUFReader, layout: GGUFLayout, weights: MergedWeights, tensor_type: MadeGGUF
    ) -> None:
        self._layout = layout
        self._weights = weights
        self._kind = _TYPES[tensor_type][0]
        self._is_mixed = tensor_type == "mixed"
        self._sources = {layout.name(name): name for name in weights.tensors}
        self._base = {tensor.name: tensor for tensor in base.tensors}
        self._names = list(self._base)
        if weights.unties and "output.weight" not in self._base:
            self._names.append("output.weight")
        if lost := {name for name in weights.changed if layout.name(name) not in self._names}:
            raise ModelLoadError(f"The base's GGUF has no tensor for {sorted(lost)[0]}; was the model made from it?")

    def descriptions(self) -> Iterator[tuple[str, tuple[int, ...], gguf.GGMLQuantizationType]]:
        """Name, shape (rows first) and type of each tensor."""
        for name in self._names:
            if self._is_matrix(name):
                shape = self._shape(name)
                yield name, shape, self._kind_of(name, shape[-1])
            else:
                tensor = self._base[name]
                yield name, tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type

    def data(self) -> Iterator[NDArray[Any]]:
        """Of each tensor, in the order of the descriptions."""
        for name in self._names:
            if self._is_matrix(name):
                values = self._matrix(name)
                yield gguf.quantize(values, self._kind_of(name, values.shape[-1]))
            else:
                yield np.asarray(self._base[name].data)

    def _is_matrix(self, name: str) -> bool:
        """Whether it is a weight of the model that is written anew; biases, norms and tables of llama.cpp are not."""
        return name in self._sources and (name not in self._base or len(self._base[name].shape) == 2)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._base:
            return tuple(int(size) for size in reversed(self._base[name].shape))
        return self._weights.tensors[self._sources[name]].shape

    def _matrix(self, name: str) -> NDArray[np.float32]:
        source = self._sources[name]
        values = self._layout.weight(source.removesuffix(".weight"), self._weights.read(source).float().numpy())
        if tuple(values.shape) != self._shape(name):
            raise ModelLoadError(f"The base's GGUF has another shape for {source}; was the model made from it?")
        return np.ascontiguousarray(values)

    def _kind_of(self, name: str, row_length: int) -> gguf.GGMLQuantizationType:
        """Rows that do not divide into blocks stay in 16 bits, and in a mixed file those of attention."""
        in_blocks = row_length % gguf.GGML_QUANT_SIZES[self._kind][0] == 0
        return self._kind if in_blocks and not (self._is_mixed and ".attn_" in name) else gguf.GGMLQuantizationType.F16


def _copy_facts(base: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in base.fields.values():
        if field.name.startswith("GGUF.") or field.name in _WRITTEN_ANEW:
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type)
