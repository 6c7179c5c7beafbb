"""Captured steps: the first time a shape comes it is run as ever and then captured, later it is replayed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import torch

log = structlog.get_logger(__name__)

_TOLERANCE = 5e-2  # of the largest logit, between a step and its replay


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides which kernels a step starts: sequences, a bound of their tokens, and whether LoRA is there."""

    size: int
    longest: int
    uses_adapters: bool


class CudaGraphs:
    """The graphs of one model. A model that cannot be captured (its kernels wait for numbers) is run as ever."""

    def __init__(self) -> None:
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}
        self._outputs: dict[int, torch.Tensor] = {}  # by size: outside of the memory that all graphs share
        self._pool: Any = None  # torch keeps the type of a memory pool's handle to itself
        self._works = True

    def run(self, shape: Shape, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `step` returns, [size, ...]; valid until the next call."""
        if shape in self._graphs:
            self._graphs[shape].replay()
            return self._outputs[shape.size]
        expected = step()
        if self._works:
            try:
                self._capture(shape, step, expected)
            except RuntimeError as error:
                log.warning("decoding_without_graphs", error=str(error))
                self._works = False
        return expected

    def _capture(self, shape: Shape, step: Callable[[], torch.Tensor], expected: torch.Tensor) -> None:
        output = self._outputs.setdefault(shape.size, torch.empty_like(expected))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output.copy_(step())
        graph.replay()  # writes the same keys to the same places once more
        difference = (output - expected).nan_to_num().abs().max() / expected.nan_to_num().abs().max()
        if not float(difference) <= _TOLERANCE:
            raise RuntimeError(f"the logits of a replayed step differ by {float(difference):.1%}")
        self._pool = graph.pool()
        self._graphs[shape] = graph
