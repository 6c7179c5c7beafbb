"""The numbers of an adapter that `check_adapter_folder` found safe, as numpy arrays. Knows no torch and no PEFT."""

from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from mini_claude.errors import ModelLoadError
from mini_claude.models.adapter_files import WEIGHTS_FILE

Array = NDArray[np.float32]


def read_adapter_tensors(folder: Path) -> dict[str, Array]:
    """All tensors of a checked adapter in float32. Raises `ModelLoadError`, also for numbers that are not finite."""
    path = folder / WEIGHTS_FILE
    _check_memory(path)
    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}); copy the adapter again.") from error
    tensors = {}
    for name, entry in entries:
        tensors[name] = _floats(entry["dtype"], entry["data"]).reshape(entry["shape"])
        if not np.isfinite(tensors[name]).all():
            raise ModelLoadError(f"{path} holds numbers that are not finite in {name}; the training went wrong.")
    return tensors


def _check_memory(path: Path) -> None:
    needed = 3 * path.stat().st_size  # the file as it is, and each number of two bytes again as one of four
    available = psutil.virtual_memory().available
    if needed > available:
        raise ModelLoadError(
            f"Loading {path} needs {needed / 1e6:,.0f} MB and {available / 1e6:,.0f} MB are free; unload another model "
            "or use an adapter of a lower rank.",
            code="insufficient_memory",
        )


def _floats(dtype: str, data: bytes) -> Array:
    """A copy, writable as torch wants it. bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
