"""The step in which every sequence reads one token, with shapes that recur: on a GPU it is captured once and replayed.

A small model's step is a thousand kernels of some microseconds each, and to start them takes longer than they run. A
graph starts them all at once, but only with the shapes and addresses that it was captured with. So sequences
are padded to the next of a few sizes, and everything that differs between steps is in one small table on the device.
"""

from collections.abc import Sequence
from typing import Final

import torch
from transformers import PreTrainedModel

from mini_claude.engine.cuda_graphs import CudaGraphs, Shape
from mini_claude.engine.kv_pool import KVPool, Run
from mini_claude.engine.lora import StepRows
from mini_claude.engine.model_runner import Part, forward
from mini_claude.engine.pool_attention import Kernel, PoolAttention, PoolStep
from mini_claude.engine.transfers import to_device

_SMALL_SIZES: Final = (1, 2, 4, 8)  # sequences
_SIZE_STEP: Final = 16  # above: the price of padding is bounded, and so is the number of graphs
_SHORTEST: Final = 512  # tokens: up to here the kernel gains nothing from knowing how long the texts are


class DecodeStep:
    """Decodes sequences of one model."""

    def __init__(self, model: PreTrainedModel, pool: KVPool, kernel: Kernel, adapter_rows: StepRows) -> None:
        self._model = model
        self._pool = pool
        self._kernel = kernel
        self._adapter_rows = adapter_rows
        self._tables: dict[int, torch.Tensor] = {}  # by size, int32 [6, size + 1]
        self._graphs = CudaGraphs() if model.device.type == "cuda" else None

    def run(self, parts: Sequence[Part], runs: Sequence[Run]) -> torch.Tensor:
        """Logits [parts, vocabulary]: one token each, in the order of their runs. Valid until the next call."""
        size = _padded(len(parts))
        longest = max(_SHORTEST, 1 << max(part.start for part in parts).bit_length())
        self._fill(size, parts, runs)
        shape = Shape(size, longest, uses_adapters=any(part.adapter is not None for part in parts))
        if self._graphs is None:
            return self._forward(shape)[: len(parts)]
        return self._graphs.run(shape, lambda: self._forward(shape))[: len(parts)]

    def forget(self) -> None:
        """The model or its adapters are others now."""
        if self._graphs is not None:
            self._graphs = CudaGraphs()

    def _fill(self, size: int, parts: Sequence[Part], runs: Sequence[Run]) -> None:
        """Padding reads token 0 at a place that belongs to no one, and sees itself alone."""
        padding = self._pool.padding_place
        num_padded = size + 1 - len(parts)  # one more, where the last slot ends
        numbers = self._adapter_rows.numbers_of([part.adapter for part in parts])
        rows = [
            [part.token_ids[0] for part in parts] + [0] * num_padded,
            [part.start for part in parts] + [0] * num_padded,
            [run.start + part.start for part, run in zip(parts, runs, strict=True)] + [padding] * num_padded,
            [part.start + 1 for part in parts] + [1] * num_padded,
            numbers + [-1] * num_padded,
            [run.start for run in runs] + [padding] * num_padded,
        ]
        table = to_device(rows, torch.int32, self._model.device)
        if size in self._tables:
            self._tables[size].copy_(table)
        else:
            self._tables[size] = table

    def _forward(self, shape: Shape) -> torch.Tensor:
        """From the table of this size to logits [size, vocabulary], without a look at what the table holds."""
        table = self._tables[shape.size]
        token_ids, positions, places, num_keys, numbers = table[:5, : shape.size]
        query_starts = torch.arange(shape.size + 1, dtype=torch.int32, device=table.device)
        step = PoolStep(places.long(), query_starts, table[5], num_keys, 1, shape.longest)
        self._adapter_rows.assign_numbers(numbers.long() if shape.uses_adapters else None, shape.size)
        attention = PoolAttention(self._pool, self._kernel, step)
        return forward(self._model, token_ids.long(), positions.long(), attention, 0)


def _padded(num_sequences: int) -> int:
    fitting = (size for size in _SMALL_SIZES if size >= num_sequences)
    return next(fitting, -(-num_sequences // _SIZE_STEP) * _SIZE_STEP)
