"""Tensors written as a safetensors file, piece by piece: hashed on the way, and never in memory a second time."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

_DTYPES: Final = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write `tensors` and return the SHA-256 of the file in hexadecimal digits. Raises `OSError`.

    Layout: 8 bytes little-endian header length, a JSON header, then the tensors without a gap.
    """
    # The widest elements first: so each tensor begins at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # readers map the tensors where they lie
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(encoded).to_bytes(8, "little"), encoded):
            digest.update(piece)
            file.write(piece)
        for _, tensor in ordered:
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()
