"""Which GGUF file llama.cpp serves a model from: the one that it came as, or one of another type, made of it once.

llama.cpp has fast kernels for some types and none for others. For those, rounding the same numbers once more pays.
With Q8_0 everywhere, the scores of a short text's tokens are the same to the last bit whatever is computed beside them,
so seeds and greedy replies repeat (with llama.cpp's own attention, which rounds by the size of a chunk, for about 100
tokens; with the one of models/kernels at any length). With the weights of attention in 16 bits ("mixed") the model
predicts as well as in float32, a little slower, and never bit for bit the same in company (benchmarks/gguf_types.py).
"""

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Final, Literal

from mini_claude.errors import MiniClaudeError, ModelLoadError
from mini_claude.models.materialize import source_gguf
from mini_claude.models.weight_files import TensorInfo, read_gguf_header
from mini_claude.runtime.adapter_requests import Base, QuantizeRequest
from mini_claude.runtime.short_process import run_short
from mini_claude.types import LoadOptions, ModelSpec
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

QUANTIZE_SECONDS: Final = 540.0  # less than the default load_timeout_seconds
# Their matmuls take one row at a time, as if every token were alone; Q8_0's and Q4_0's take several.
_SLOW_TYPES: Final = ("Q4_1", "Q5_0", "Q5_1")
_MAX_ELEMENTS: Final = 10**9  # of a model that is made larger for speed


def served_gguf(spec: ModelSpec, folder: Path, models_dir: Path, options: LoadOptions) -> tuple[Path, str]:
    """The file to load and what its type is called; made the first time, in a process of its own.

    `folder` is the materialised model. Raises `ModelLoadError` for one that did not come from a GGUF file, and where
    the type that the options name cannot be made; one that was not asked for by name is done without.
    """
    source = source_gguf(folder)
    if source is None:
        raise ModelLoadError(f"{spec.name} did not come from a GGUF file, which llama.cpp needs; set engine to torch.")
    tensors = read_gguf_header(source)
    own_type = _main_type(tensors)
    wanted = _chosen(tensors, own_type) if options.gguf_type == "auto" else options.gguf_type
    if wanted == "as_is" or wanted.upper() == own_type:
        return source, own_type.lower()
    target = folder / f"{wanted}.gguf"
    if not is_made_of(target, source):
        try:
            request = QuantizeRequest(Base(spec, str(models_dir)), str(target), wanted)
            asyncio.run(run_short("quantize", request, QUANTIZE_SECONDS))
        except MiniClaudeError as error:
            if options.gguf_type != "auto":
                raise ModelLoadError(f"gguf_type {wanted} cannot be had for {spec.name}: {error.message}") from error
            log.warning("gguf.served_as_it_is", model=spec.name, reason=error.message)
            return source, own_type.lower()
    return target, wanted


def ready_gguf(folder: Path) -> Path | None:
    """The file that "auto" serves from if it has been made, else the one that the model came as, if it did."""
    source = source_gguf(folder)
    if source is None:
        return None
    tensors = read_gguf_header(source)
    made = folder / f"{_chosen(tensors, _main_type(tensors))}.gguf"
    return made if is_made_of(made, source) else source


def is_made_of(target: Path, source: Path) -> bool:
    """Whether the file is there and no older than what it is to be made of."""
    return target.exists() and target.stat().st_mtime >= source.stat().st_mtime


def _main_type(tensors: dict[str, TensorInfo]) -> str:
    """The type of most of the weights."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0]


def _chosen(tensors: dict[str, TensorInfo], own_type: str) -> Literal["as_is", "q8_0"]:
    num_elements = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return "q8_0" if own_type in _SLOW_TYPES and num_elements <= _MAX_ELEMENTS else "as_is"
