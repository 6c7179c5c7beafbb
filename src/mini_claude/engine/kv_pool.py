"""The tensors behind the KV cache on a GPU: for each layer one pool, in which every sequence has a run of places.

Torch's varlen kernel reads keys from slots of one tensor: where each starts and how much of it is used. A table of
scattered pages it takes only with FlashAttention 3 or 4, which are not part of torch. So a sequence's tokens stay
together, and one call reads those of all sequences. Where a run cannot grow because another begins, all runs are laid
out anew, with the free places divided among those that grow. Pools have fixed addresses, as a captured step needs.
kv_cache.py decides how much there may be in all.
"""

from dataclasses import dataclass

import torch

from mini_claude.engine.kv_cache import CacheEntry

_SLACK = 1 / 4  # of the budget: room that belongs to no one, so that a full pool is not laid out anew in every step


@dataclass(slots=True)
class Run:
    """Places `start` to `start + size` of the pool."""

    start: int
    size: int
    grows: bool = True

    @property
    def end(self) -> int:
        """The first place that is not its own."""
        return self.start + self.size


class KVPool:
    """The runs of all cache entries. The pool's last place belongs to no one: padding is written there."""

    def __init__(self, num_tokens: int, device: torch.device) -> None:
        """For cache entries of `num_tokens` in all."""
        self.padding_place = num_tokens + int(num_tokens * _SLACK)
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.num_layouts = 0
        self._device = device
        self._runs: dict[CacheEntry, Run] = {}

    @property
    def num_places(self) -> int:
        """Length of each layer's tensors."""
        return self.padding_place + 1

    def layer(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's tensors, [places, kv_heads, head_dim] each; made like `key` and `value` [kv_heads, any, head_dim]
        when they are first asked for."""
        if layer not in self.layers:
            self.layers[layer] = (self._empty(key), self._empty(value))
        return self.layers[layer]

    def reserve(self, entry: CacheEntry) -> Run:
        """A running entry's run, with room for all of its tokens, also for those that are still to be computed."""
        run = self._resized(entry, len(entry.token_ids))
        run.grows = True
        return run

    def holds(self, entry: CacheEntry) -> bool:
        """Whether any layer has kept keys and values of this entry."""
        return entry in self._runs and bool(self.layers)

    def can_reuse(self, source: CacheEntry, num_tokens: int) -> bool:
        """See `CacheStorage`. Only these tokens are touched."""
        del source, num_tokens
        return True

    @torch.inference_mode()  # as the model's step, which made the tensors: they cannot be written without
    def copy_prefix(self, source: CacheEntry, target: CacheEntry, num_tokens: int) -> None:
        """See `CacheStorage`."""
        to, start = self._resized(target, num_tokens).start, self._runs[source].start
        for tensor in self._tensors():
            tensor[to : to + num_tokens] = tensor[start : start + num_tokens]

    def truncate(self, entry: CacheEntry, num_tokens: int) -> None:
        """See `CacheStorage`. An idle entry does not grow."""
        run = self._runs[entry]
        run.size, run.grows = min(run.size, num_tokens), False

    def free(self, entry: CacheEntry) -> None:
        """See `CacheStorage`."""
        self._runs.pop(entry, None)  # else it ended before its first step

    def _resized(self, entry: CacheEntry, size: int) -> Run:
        run = self._runs.get(entry)
        if run is None:
            start, room = self._largest_gap()
            # In the middle of it, so that the one before can grow as well.
            run = self._runs[entry] = Run(start + max(room - size, 0) // 2 if start else 0, 0)
        else:
            later = (other.start for other in self._runs.values() if other.start > run.start)
            room = min(later, default=self.padding_place) - run.start
        if size > room:
            self._lay_out(entry, size)
        run.size = max(run.size, size)
        return run

    def _largest_gap(self) -> tuple[int, int]:
        """Where it starts and how long it is."""
        runs = sorted(self._runs.values(), key=lambda run: run.start)
        starts = [0, *(run.end for run in runs)]
        ends = [*(run.start for run in runs), self.padding_place]
        return max(((start, end - start) for start, end in zip(starts, ends, strict=True)), key=lambda gap: gap[1])

    @torch.inference_mode()
    def _lay_out(self, grown: CacheEntry, size: int) -> None:
        """Move all runs, in their order, so that this entry's has the room that it needs, and each that grows more."""
        sizes = {entry: size if entry is grown else run.size for entry, run in self._runs.items()}
        num_growing = sum(run.grows for run in self._runs.values())
        free = self.padding_place - sum(sizes.values())
        assert free >= 0, "the cache has promised more than the pool holds"
        places = torch.arange(self.num_places)
        start = 0
        for entry, run in sorted(self._runs.items(), key=lambda item: (item[1].start, item[1].size)):
            places[start : start + run.size] = torch.arange(run.start, run.end)
            run.start = start
            start += sizes[entry] + (free // num_growing if run.grows else 0)
        places = places.to(self._device)
        for tensor in self._tensors():
            tensor.copy_(tensor[places])
        self.num_layouts += 1

    def _tensors(self) -> list[torch.Tensor]:
        return [tensor for pair in self.layers.values() for tensor in pair]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        """Zeros: attention gives unused places no weight, but no weight times NaN is NaN."""
        return like.new_zeros(self.num_places, like.shape[0], like.shape[2])
