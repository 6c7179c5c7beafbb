"""The tensors behind the KV cache: one growing buffer for each sequence and layer.

A sequence's keys lie next to each other, [kv_heads, tokens, head_dim], so attention reads them as a plain slice
and nothing is gathered. Buffers grow geometrically; kv_cache.py decides how much there may be in all.
"""

import torch

from mini_claude.engine.kv_cache import CacheEntry

_GRANULARITY = 64  # tokens: a buffer's capacity is a multiple of this


class KVBuffer:
    """Keys and values of one sequence, by layer."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, num_past: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write key and value, both [kv_heads, new, head_dim], after the first `num_past` tokens.

        Returns the keys and values of all `num_past + new` tokens.
        """
        end = num_past + key.shape[1]
        stored = self._layers.get(layer)
        if stored is None or stored[0].shape[1] < end:
            capacity = _rounded(end + end // 8)  # room to grow token by token and seldom copy
            stored = self._layers[layer] = (
                _resized(stored and stored[0], key, num_past, capacity),
                _resized(stored and stored[1], value, num_past, capacity),
            )
        keys, values = stored
        keys[:, num_past:end] = key
        values[:, num_past:end] = value
        return keys[:, :end], values[:, :end]

    def prefix(self, num_tokens: int) -> "KVBuffer":
        """A copy of the first tokens, no larger than they need."""
        copy = KVBuffer()
        for layer, (keys, values) in self._layers.items():
            copy._layers[layer] = (
                _resized(keys, keys, num_tokens, _rounded(num_tokens)),
                _resized(values, values, num_tokens, _rounded(num_tokens)),
            )
        return copy

    @property
    def capacity(self) -> int:
        """Tokens for which there is memory."""
        return max((keys.shape[1] for keys, _ in self._layers.values()), default=0)


class KVStorage:
    """The buffers of all cache entries."""

    def __init__(self) -> None:
        self._buffers: dict[CacheEntry, KVBuffer] = {}

    def buffer(self, entry: CacheEntry) -> KVBuffer:
        """The entry's buffer; an empty one at first."""
        return self._buffers.setdefault(entry, KVBuffer())

    def copy_prefix(self, source: CacheEntry, target: CacheEntry, num_tokens: int) -> None:
        """See `CacheStorage`."""
        self._buffers[target] = self.buffer(source).prefix(num_tokens)

    def truncate(self, entry: CacheEntry, num_tokens: int) -> None:
        """See `CacheStorage`. An idle entry keeps no room to grow."""
        buffer = self.buffer(entry)
        if buffer.capacity > _rounded(num_tokens):
            self._buffers[entry] = buffer.prefix(num_tokens)

    def free(self, entry: CacheEntry) -> None:
        """See `CacheStorage`."""
        self._buffers.pop(entry, None)


def _rounded(num_tokens: int) -> int:
    return -(-num_tokens // _GRANULARITY) * _GRANULARITY


def _resized(old: torch.Tensor | None, like: torch.Tensor, num_past: int, capacity: int) -> torch.Tensor:
    """Memory for `capacity` tokens, with the first `num_past` tokens of `old` in it."""
    new = like.new_empty(like.shape[0], capacity, like.shape[2])
    if old is not None:
        new[:, :num_past] = old[:, :num_past]
    return new
