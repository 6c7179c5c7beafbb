"""Who may hold how much of the KV cache: accounting without a tensor.

The budget is counted in blocks of tokens. An entry belongs to a running sequence, or it is idle: a finished
sequence's keys and values, kept in case a later prompt begins with the same tokens (the next turn of a chat
always does). Idle entries give way, least recently used first, whenever a running sequence needs the room.
The same tokens have other keys and values under another adapter, so an entry serves only its own adapter's sequences.
"""

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Protocol

from mini_claude.types import AdapterRef

BLOCK_SIZE = 16  # tokens
MAX_IDLE_SHARE = 1 / 3  # of the budget: memory that only might be useful stays bounded; the newest prefix is kept whole


@dataclass(slots=True, eq=False)
class CacheEntry:
    """Keys and values of the first `num_computed` of `token_ids` (a running sequence's own, growing list)."""

    token_ids: list[int]
    num_computed: int = 0
    num_blocks: int = 0
    adapter: AdapterRef | None = None


class CacheStorage(Protocol):
    """Where the keys and values really are; `kv_storage.py` keeps them in tensors, tests keep nothing."""

    def can_reuse(self, source: CacheEntry, num_tokens: int) -> bool:
        """Whether `source`'s first tokens can be had without the rest, for less than reading them again."""
        ...

    def copy_prefix(self, source: CacheEntry, target: CacheEntry, num_tokens: int) -> None:
        """Make the first tokens of `source` those of the empty `target`."""
        ...

    def truncate(self, entry: CacheEntry, num_tokens: int) -> None:
        """Keep only the first tokens."""
        ...

    def free(self, entry: CacheEntry) -> None:
        """Forget the entry."""
        ...


class KVCache:
    """Hands out room to running sequences and keeps idle prefixes in what is left."""

    def __init__(self, num_tokens: int, storage: CacheStorage) -> None:
        self._storage = storage
        self._num_blocks = num_tokens // BLOCK_SIZE
        self._running: list[CacheEntry] = []
        self._idle: list[CacheEntry] = []  # least recently used first

    @property
    def num_tokens(self) -> int:
        """The budget, in whole blocks."""
        return self._num_blocks * BLOCK_SIZE

    @property
    def num_used_tokens(self) -> int:
        """Tokens of room that running sequences hold."""
        return sum(entry.num_blocks for entry in self._running) * BLOCK_SIZE

    @property
    def num_idle_tokens(self) -> int:
        """Tokens of room that can be taken back at any time."""
        return sum(entry.num_blocks for entry in self._idle) * BLOCK_SIZE

    def allocate(self, token_ids: list[int], adapter: AdapterRef | None = None) -> CacheEntry | None:
        """Room for all of `token_ids`, with the longest prefix of them that this adapter has read already computed.

        The last token is never taken from the cache: reading it gives the logits for the next one. None when
        running sequences hold too much.
        """
        num_blocks = _blocks(len(token_ids))
        if num_blocks > self._num_blocks - sum(entry.num_blocks for entry in self._running):
            return None
        source, num_shared = self._longest_prefix(token_ids, adapter)
        if source in self._idle and self._takes_over(source, num_shared, num_blocks):
            self._idle.remove(source)
            self._storage.truncate(source, num_shared)
            entry, entry.token_ids, entry.num_blocks = source, token_ids, 0
        else:
            entry = CacheEntry(token_ids, adapter=adapter)
            if source is not None:
                self._touch(source)  # so that it is the last to give way, and there is room for both
        self._reserve(entry, num_blocks)
        if source is not None and entry is not source:
            self._storage.copy_prefix(source, entry, num_shared)
        entry.num_computed = num_shared
        self._running.append(entry)
        return entry

    def grow(self, entry: CacheEntry, num_tokens: int) -> bool:
        """Room for `num_tokens` in all; False when other running sequences hold too much."""
        return num_tokens <= entry.num_blocks * BLOCK_SIZE or self._reserve(entry, _blocks(num_tokens))

    def release(self, entry: CacheEntry, *, keep: bool) -> None:
        """The sequence has ended or was preempted; with `keep`, its tokens stay as an idle prefix."""
        self._running.remove(entry)
        if keep and entry.num_computed >= BLOCK_SIZE and not any(_covers(idle, entry) for idle in self._idle):
            for shorter in [idle for idle in self._idle if _covers(entry, idle)]:
                self._evict(shorter)
            entry.token_ids = entry.token_ids[: entry.num_computed]
            entry.num_blocks = _blocks(entry.num_computed)
            self._storage.truncate(entry, entry.num_computed)
            self._idle.append(entry)
            while len(self._idle) > 1 and self.num_idle_tokens > self.num_tokens * MAX_IDLE_SHARE:
                self._evict(self._idle[0])
        else:
            self._storage.free(entry)

    def clear(self) -> None:
        """Forget all idle prefixes."""
        while self._idle:
            self._evict(self._idle[0])

    def forget(self, adapter: AdapterRef) -> None:
        """Forget the idle prefixes of an adapter that is gone: its name may come back with other weights."""
        for entry in [idle for idle in self._idle if idle.adapter == adapter]:
            self._evict(entry)

    def _reserve(self, entry: CacheEntry, num_blocks: int) -> bool:
        wanted = num_blocks - entry.num_blocks
        num_running = sum(other.num_blocks for other in self._running)
        if num_running + wanted > self._num_blocks:
            return False
        while num_running + wanted + sum(idle.num_blocks for idle in self._idle) > self._num_blocks:
            self._evict(self._idle[0])
        entry.num_blocks += wanted
        return True

    def _longest_prefix(self, token_ids: list[int], adapter: AdapterRef | None) -> tuple[CacheEntry | None, int]:
        """The adapter's entry that shares most leading tokens, and how many; not worth it below one block."""
        best, num_best = None, BLOCK_SIZE - 1
        for entry in (*self._running, *reversed(self._idle)):
            if entry.adapter != adapter:
                continue
            limit = min(entry.num_computed, len(token_ids) - 1)
            if limit > num_best and entry.token_ids[:num_best] == token_ids[:num_best]:
                num_shared = _common_prefix(entry.token_ids, token_ids, limit)
                if num_shared > num_best and self._storage.can_reuse(entry, num_shared):
                    best, num_best = entry, num_shared
        return (best, num_best) if best is not None else (None, 0)

    def _takes_over(self, source: CacheEntry, num_shared: int, num_blocks: int) -> bool:
        """Whether to use an idle entry itself instead of a copy: little is lost, or there is no room for both."""
        num_running = sum(entry.num_blocks for entry in self._running)
        no_room = num_running + num_blocks + source.num_blocks > self._num_blocks
        return no_room or source.num_computed - num_shared <= BLOCK_SIZE

    def _touch(self, entry: CacheEntry) -> None:
        if entry in self._idle:
            self._idle.remove(entry)
            self._idle.append(entry)

    def _evict(self, entry: CacheEntry) -> None:
        self._idle.remove(entry)
        self._storage.free(entry)


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def _common_prefix(a: AbstractSequence[int], b: AbstractSequence[int], limit: int) -> int:
    """Length of the common prefix of a and b up to `limit`, by bisection: comparing slices is fast."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _covers(longer: CacheEntry, shorter: CacheEntry) -> bool:
    """Whether every computed token of `shorter` is in `longer` as well, as computed by the same adapter."""
    size = shorter.num_computed
    same = longer.adapter == shorter.adapter and longer.num_computed >= size
    return same and longer.token_ids[:size] == shorter.token_ids[:size]
