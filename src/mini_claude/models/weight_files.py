"""What a weight file says of itself, read and checked without reading the weights: safetensors and GGUF headers.

Both formats hold numbers only, which is why they are the two that are served. A header is still a stranger's: every
length in it is compared with the file's size before it is believed.
"""

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import ModelLoadError

_MAX_HEADER_BYTES: Final = 100_000_000  # the limit of the safetensors library
_MAX_ENTRIES: Final = 10_000_000
_DTYPE_BITS: Final = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's element type, as its format names it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """1 for a scalar."""
        return math.prod(self.shape)


def _broken(path: Path, what: str) -> ModelLoadError:
    return ModelLoadError(
        f"{path} is truncated or damaged ({what}); copy or download it again.", code="model_file_damaged"
    )


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Names, types and shapes of the tensors in a safetensors file.

    Layout: 8 bytes little-endian header length, a JSON header, then the tensors without a gap. Raises
    `ModelLoadError` unless header and file size agree exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _broken(path, f"{size} bytes hold no header of {length}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        spans = sorted(_safetensors_span(entry) for entry in header.values())
        tensors = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, f"its header makes no sense: {error!r}") from error
    end = 0
    for start, stop in spans:
        if start != end:
            raise _broken(path, "its tensors overlap or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise _broken(path, f"it has {size} bytes and its header describes {8 + length + end}")
    return tensors


def _safetensors_span(entry: Mapping[str, Any]) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    shape = entry["shape"]
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
        raise ValueError("offsets and shapes are whole numbers")
    if (stop - start) * 8 != math.prod(shape) * _DTYPE_BITS[entry["dtype"]]:
        raise ValueError("a tensor's shape does not fit its place")
    return start, stop


def read_gguf_header(path: Path) -> dict[str, TensorInfo]:
    """Names, types and shapes of the tensors in a GGUF file.

    Layout: magic, version, counts, key-value pairs, tensor descriptions, padding, tensors (GGUF specification,
    version 3). Raises `ModelLoadError` where the file ends before what its header describes.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise _broken(path, "it does not begin as a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _GGUFCursor(data)
            try:
                descriptions, start = cursor.descriptions()
                end = start
                tensors = {}
                for name, shape, kind, offset in descriptions:
                    quantization = GGMLQuantizationType(kind)
                    block, block_bytes = GGML_QUANT_SIZES[quantization]
                    tensors[name] = TensorInfo(quantization.name, shape)
                    end = max(end, start + offset + tensors[name].num_elements // block * block_bytes)
            except (struct.error, ValueError, KeyError, RecursionError) as error:
                raise _broken(path, f"its header makes no sense: {error}") from error
            if end > len(data):
                raise _broken(path, f"it has {len(data)} bytes and its header describes {end}")
    return tensors


class _GGUFCursor:
    """Walks through a GGUF header; values of metadata are skipped except the alignment."""

    _SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    _STRING: Final = 8
    _ARRAY: Final = 9

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._position = 4  # past the magic

    def descriptions(self) -> tuple[list[tuple[str, tuple[int, ...], int, int]], int]:
        """(name, shape, type, offset) of every tensor, and where the tensors begin in the file."""
        if self._number("I") not in (2, 3):
            raise ValueError("only GGUF versions 2 and 3 are known")
        num_tensors, num_pairs = self._count(), self._count()
        alignment = 32
        for _ in range(num_pairs):
            key = self._string()
            value = self._value(self._number("I"))
            if key == "general.alignment" and value:
                alignment = value
        tensors = []
        for _ in range(num_tensors):
            name = self._string()
            num_dims = self._number("I")
            if num_dims > 8:
                raise ValueError(f"a tensor of {num_dims} dimensions")
            shape = tuple(self._number("Q") for _ in range(num_dims))
            tensors.append((name, shape, self._number("I"), self._number("Q")))
        return tensors, -(-self._position // alignment) * alignment

    def _number(self, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._position)
        self._position += struct.calcsize(code)
        return int(value)

    def _count(self) -> int:
        count = self._number("Q")
        if count > min(len(self._data), _MAX_ENTRIES):
            raise ValueError(f"{count} entries")
        return count

    def _skip(self, num_bytes: int) -> None:
        self._position += num_bytes
        if self._position > len(self._data):
            raise ValueError("a value goes past the end")

    def _string(self) -> str:
        start, length = self._position + 8, self._number("Q")
        self._skip(length)
        return self._data[start : start + length].decode()

    def _value(self, kind: int) -> int | None:
        """The value if it is an unsigned 32-bit number, which the alignment is."""
        if kind == 4:
            return self._number("I")
        if kind == self._STRING:
            self._skip(self._number("Q"))
        elif kind == self._ARRAY:
            element, count = self._number("I"), self._count()
            if element in self._SCALARS:
                self._skip(count * struct.calcsize(self._SCALARS[element]))
            else:
                for _ in range(count):
                    self._value(element)
        else:
            self._skip(struct.calcsize(self._SCALARS[kind]))
        return None
