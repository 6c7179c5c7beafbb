"""The tensors behind the KV cache on a CPU: arenas of rows, a row for each sequence.

A sequence's keys lie next to each other, [kv_heads, tokens, head_dim], so attention reads them as a plain slice
and nothing is gathered. Running sequences of about the same length share an arena, for one call can read neighbouring
rows. One that outgrows its row moves to a longer one. Idle prefixes move out, so that running ones stay neighbours, to
an arena of their own that is no larger than they need. kv_cache.py decides how much there may be in all.
"""

from dataclasses import dataclass
from itertools import chain
from math import prod
from mmap import ALLOCATIONGRANULARITY, MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch

from mini_claude.engine.kv_cache import CacheEntry

_GRANULARITY = 64  # tokens: an idle prefix's room is a multiple of this, and rows are cleared in such steps
_SHORTEST_ROW = 256  # tokens: shorter rows would split short texts into more calls, which cost more than unused keys
_LONGEST_SHARED_ROW = 1024  # tokens: for a longer text, one call more is nothing
_ARENA_TOKENS = 2048  # what the rows of a shared arena hold together


class Arena:
    """Rows of one capacity in tokens: for each layer [rows, kv_heads, capacity, head_dim] of keys, and of values."""

    def __init__(self, capacity: int, num_rows: int) -> None:
        self.capacity = capacity
        self.num_rows = num_rows
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._mappings: dict[int, list[mmap]] = {}  # the layers' memory
        self._num_finite: dict[int, int] = {}  # by row in use: how many leading tokens are known to be no NaN

    @property
    def num_used(self) -> int:
        """Rows in use."""
        return len(self._num_finite)

    def take(self) -> "Row":
        """The lowest free row: sequences that come together become neighbours."""
        index = next(index for index in range(self.num_rows) if index not in self._num_finite)
        self._num_finite[index] = 0
        return Row(self, index)

    def give_back(self, row: "Row") -> None:
        """The row is free again, and so is its memory: its neighbours may go on for long."""
        del self._num_finite[row.index]
        for mapping in chain.from_iterable(self._mappings.values()):
            row_size = len(mapping) // self.num_rows
            start = _rounded(row.index * row_size, ALLOCATIONGRANULARITY)
            size = ((row.index + 1) * row_size - start) // ALLOCATIONGRANULARITY * ALLOCATIONGRANULARITY
            if size > 0:
                mapping.madvise(MADV_DONTNEED, start, size)

    def layer(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's tensors; made when they are first asked for, like `key` and `value` [kv_heads, any, head_dim]."""
        if layer not in self.layers:
            self.layers[layer] = (self._empty(layer, key), self._empty(layer, value))
        return self.layers[layer]

    def drop_layer(self, layer: int) -> None:
        """Give a layer's memory back, in all rows."""
        del self.layers[layer]
        self._mappings.pop(layer, None)

    def clear(self, index: int, num_past: int, num_tokens: int) -> None:
        """Zeros between a row's own `num_past` tokens and `num_tokens`, where other rows have keys.

        Attention gives them no weight, but no weight times NaN is NaN, and memory that was never written, or by a
        sequence that failed, may hold that.
        """
        if self._num_finite[index] >= num_tokens:
            return
        start = max(num_past, self._num_finite[index])
        self._num_finite[index] = end = _rounded(num_tokens, _GRANULARITY)
        for keys, values in self.layers.values():
            keys[index, :, start:end] = 0
            values[index, :, start:end] = 0

    def _empty(self, layer: int, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised, in pages of its own: on the heap, between a step's short-lived tensors, it would leave gaps
        that nothing fits into (once 180 MB), and not all of it would come back to the system."""
        shape = (self.num_rows, like.shape[0], self.capacity, like.shape[2])
        mapping = mmap(-1, prod(shape) * like.element_size(), flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._mappings.setdefault(layer, []).append(mapping)
        return torch.frombuffer(mapping, dtype=like.dtype).view(shape)


@dataclass(frozen=True, slots=True)
class Row:
    """The place of one sequence."""

    arena: Arena
    index: int

    def append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, num_past: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write key and value, both [kv_heads, new, head_dim], after the first `num_past` tokens.

        Returns the keys and values of all `num_past + new` tokens.
        """
        end = num_past + key.shape[1]
        all_keys, all_values = self.arena.layer(layer, key, value)
        keys, values = all_keys[self.index, :, :end], all_values[self.index, :, :end]
        keys[:, num_past:] = key
        values[:, num_past:] = value
        return keys, values

    @torch.inference_mode()  # as the model's step, which made the tensors: they cannot be written without
    def copy_from(self, source: "Row", num_tokens: int, *, is_move: bool) -> None:
        """Make the first tokens of `source` those of this row. In a move, the source is not needed afterwards."""
        for layer, (keys, values) in tuple(source.arena.layers.items()):
            self.append(layer, keys[source.index, :, :num_tokens], values[source.index, :, :num_tokens], 0)
            if is_move and source.arena.num_used == 1:
                source.arena.drop_layer(layer)  # layer by layer, so that a long row is never in memory twice


class KVStorage:
    """The rows of all cache entries."""

    def __init__(self) -> None:
        self._rows: dict[CacheEntry, Row] = {}
        self._shared: list[Arena] = []

    def reserve(self, entry: CacheEntry) -> Row:
        """A running entry's row, with room for all of its tokens, also for those that are still to be computed."""
        num_tokens = len(entry.token_ids)
        row = self._rows.get(entry)
        if row is None:
            row = self._rows[entry] = self._row_for(num_tokens)
        elif row.arena.capacity < num_tokens or (row.arena.num_rows == 1 and num_tokens <= _LONGEST_SHARED_ROW):
            row = self._move(entry, self._row_for(num_tokens), entry.num_computed)
        return row

    def can_reuse(self, source: CacheEntry, num_tokens: int) -> bool:
        """See `CacheStorage`. Only these tokens are touched."""
        del source, num_tokens
        return True

    def copy_prefix(self, source: CacheEntry, target: CacheEntry, num_tokens: int) -> None:
        """See `CacheStorage`."""
        self.reserve(target).copy_from(self._rows[source], num_tokens, is_move=False)

    def truncate(self, entry: CacheEntry, num_tokens: int) -> None:
        """See `CacheStorage`. An idle entry shares with no one, and keeps little room to grow."""
        arena = self._rows[entry].arena
        if arena.num_rows > 1 or arena.capacity > _rounded(num_tokens + num_tokens // 8, _GRANULARITY):
            self._move(entry, Arena(_rounded(num_tokens, _GRANULARITY), num_rows=1).take(), num_tokens)

    def free(self, entry: CacheEntry) -> None:
        """See `CacheStorage`."""
        if entry in self._rows:  # else it ended before its first step
            self._give_back(self._rows.pop(entry))

    def _row_for(self, num_tokens: int) -> Row:
        capacity = _capacity(num_tokens)
        for arena in self._shared:
            if arena.capacity == capacity and arena.num_used < arena.num_rows:
                return arena.take()
        arena = Arena(capacity, _num_rows(capacity))
        if arena.num_rows > 1:
            self._shared.append(arena)
        return arena.take()

    def _move(self, entry: CacheEntry, row: Row, num_tokens: int) -> Row:
        """Give the entry a free row, with the first tokens of its old one."""
        old, self._rows[entry] = self._rows[entry], row
        try:
            row.copy_from(old, num_tokens, is_move=True)
        finally:  # without memory for the copy, the entry is freed next: no row may be left without an owner
            self._give_back(old)
        return row

    def _give_back(self, row: Row) -> None:
        row.arena.give_back(row)
        if row.arena.num_used == 0 and row.arena in self._shared:
            self._shared.remove(row.arena)


def _capacity(num_tokens: int) -> int:
    """Of a running text's row: a power of two, so that many share it; closer for a long text, alone in its arena."""
    if num_tokens > _LONGEST_SHARED_ROW:
        return _rounded(num_tokens, _LONGEST_SHARED_ROW)
    return max(_SHORTEST_ROW, 1 << (num_tokens - 1).bit_length())


def _num_rows(capacity: int) -> int:
    return max(1, _ARENA_TOKENS // capacity)


def _rounded(num_tokens: int, multiple: int) -> int:
    return -(-num_tokens // multiple) * multiple
