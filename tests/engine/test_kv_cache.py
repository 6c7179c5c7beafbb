"""The accounting of the KV cache, without any tensor."""

import pytest

from mini_claude.engine.kv_cache import BLOCK_SIZE, CacheEntry, KVCache
from mini_claude.types import AdapterRef

ONE, TWO = AdapterRef("m:a@1", "/a/1"), AdapterRef("m:a@2", "/a/2")


class Recorder:
    """A storage that holds nothing and remembers what was asked of it."""

    def __init__(self) -> None:
        self.reuses = True
        self.copied: list[int] = []
        self.truncated: list[int] = []
        self.freed: list[CacheEntry] = []

    def can_reuse(self, source: CacheEntry, num_tokens: int) -> bool:
        return self.reuses

    def copy_prefix(self, source: CacheEntry, target: CacheEntry, num_tokens: int) -> None:
        self.copied.append(num_tokens)

    def truncate(self, entry: CacheEntry, num_tokens: int) -> None:
        self.truncated.append(num_tokens)

    def free(self, entry: CacheEntry) -> None:
        self.freed.append(entry)


@pytest.fixture
def storage() -> Recorder:
    return Recorder()


@pytest.fixture
def cache(storage: Recorder) -> KVCache:
    return KVCache(10 * BLOCK_SIZE, storage)


def tokens(num_tokens: int, start: int = 0) -> list[int]:
    return list(range(start, start + num_tokens))


def read(cache: KVCache, token_ids: list[int], adapter: AdapterRef | None = None) -> CacheEntry:
    """Allocate and pretend that the model has read everything."""
    entry = cache.allocate(token_ids, adapter)
    assert entry is not None
    entry.num_computed = len(token_ids)
    return entry


def test_room_is_counted_in_whole_blocks(cache: KVCache) -> None:
    read(cache, tokens(BLOCK_SIZE + 1))
    assert cache.num_used_tokens == 2 * BLOCK_SIZE
    assert KVCache(BLOCK_SIZE + 5, Recorder()).num_tokens == BLOCK_SIZE


def test_running_sequences_cannot_hold_more_than_the_budget(cache: KVCache) -> None:
    entry = read(cache, tokens(6 * BLOCK_SIZE))
    assert cache.allocate(tokens(5 * BLOCK_SIZE, 1000)) is None
    assert cache.grow(entry, 10 * BLOCK_SIZE)
    assert not cache.grow(entry, 10 * BLOCK_SIZE + 1)
    assert cache.num_used_tokens == cache.num_tokens


def test_released_room_is_free_or_idle(cache: KVCache, storage: Recorder) -> None:
    dropped, kept = read(cache, tokens(40)), read(cache, tokens(40, 1000))
    cache.release(dropped, keep=False)
    cache.release(kept, keep=True)
    assert cache.num_used_tokens == 0
    assert cache.num_idle_tokens == 48
    assert storage.freed == [dropped]


def test_the_next_turn_takes_over_the_idle_entry(cache: KVCache, storage: Recorder) -> None:
    first = read(cache, tokens(50))
    cache.release(first, keep=True)
    second = cache.allocate(tokens(70))
    assert second is first
    assert second.num_computed == 50
    assert storage.copied == []
    assert (cache.num_used_tokens, cache.num_idle_tokens) == (80, 0)


def test_the_last_token_of_a_prompt_is_always_read(cache: KVCache) -> None:
    cache.release(read(cache, tokens(50)), keep=True)
    entry = cache.allocate(tokens(50))
    assert entry is not None
    assert entry.num_computed == 49


def test_a_beginning_that_costs_more_to_copy_is_read_again(cache: KVCache, storage: Recorder) -> None:
    storage.reuses = False
    cache.allocate(list(range(40)))
    first = cache.allocate(list(range(100, 140)))
    assert first is not None
    first.num_computed = 40
    second = cache.allocate([*range(100, 120), 7, 7])
    assert second is not None
    assert (second.num_computed, storage.copied) == (0, [])


def test_a_shared_beginning_is_copied_so_that_both_chats_keep_theirs(cache: KVCache, storage: Recorder) -> None:
    first = read(cache, tokens(60))
    cache.release(first, keep=True)
    other = cache.allocate(tokens(20) + tokens(30, 1000))
    assert other is not None
    assert other is not first
    assert other.num_computed == 20
    assert storage.copied == [20]
    assert cache.num_idle_tokens == 64


def test_a_running_sequence_lends_its_prefix(cache: KVCache, storage: Recorder) -> None:
    read(cache, tokens(40))
    entry = cache.allocate(tokens(40))
    assert entry is not None
    assert entry.num_computed == 39
    assert storage.copied == [39]


def test_only_computed_tokens_are_lent(cache: KVCache) -> None:
    entry = read(cache, tokens(40))
    entry.num_computed = 20
    other = cache.allocate(tokens(40))
    assert other is not None
    assert other.num_computed == 20


def test_a_match_below_one_block_is_not_worth_it(cache: KVCache) -> None:
    cache.release(read(cache, tokens(40)), keep=True)
    entry = cache.allocate(tokens(BLOCK_SIZE - 1) + tokens(30, 1000))
    assert entry is not None
    assert entry.num_computed == 0


def test_the_longest_of_several_prefixes_is_used(cache: KVCache) -> None:
    cache.release(read(cache, tokens(20) + tokens(10, 1000)), keep=True)
    cache.release(read(cache, tokens(30) + tokens(20, 2000)), keep=True)
    entry = cache.allocate(tokens(60))
    assert entry is not None
    assert entry.num_computed == 30


def test_idle_entries_give_way_least_recently_used_first(storage: Recorder) -> None:
    cache = KVCache(30 * BLOCK_SIZE, storage)
    old, used, young = (read(cache, tokens(3 * BLOCK_SIZE, 1000 * i)) for i in (1, 2, 3))
    for entry in (used, old, young):
        cache.release(entry, keep=True)
    assert cache.allocate(tokens(BLOCK_SIZE + 1, 2000)) is not None  # a copy of the beginning of `used`
    assert cache.allocate(tokens(20 * BLOCK_SIZE, 9000)) is not None
    assert storage.freed == [old]


def test_idle_entries_keep_to_a_third_of_the_budget_but_the_newest_is_kept_whole(
    cache: KVCache, storage: Recorder
) -> None:
    first, second = (read(cache, tokens(3 * BLOCK_SIZE, 1000 * i)) for i in (1, 2))
    cache.release(first, keep=True)
    cache.release(second, keep=True)
    assert (storage.freed, cache.num_idle_tokens) == ([first], 3 * BLOCK_SIZE)
    cache.release(read(cache, tokens(9 * BLOCK_SIZE, 5000)), keep=True)
    assert cache.num_idle_tokens == 9 * BLOCK_SIZE


def test_without_room_for_a_copy_the_idle_entry_is_taken_over(cache: KVCache, storage: Recorder) -> None:
    idle = read(cache, tokens(8 * BLOCK_SIZE))
    cache.release(idle, keep=True)
    entry = cache.allocate(tokens(2 * BLOCK_SIZE) + tokens(3 * BLOCK_SIZE, 1000))
    assert entry is idle
    assert storage.truncated[-1] == 2 * BLOCK_SIZE
    assert (cache.num_used_tokens, cache.num_idle_tokens) == (5 * BLOCK_SIZE, 0)


def test_the_same_text_twice_is_kept_once(cache: KVCache) -> None:
    first, second, longer = read(cache, tokens(40)), read(cache, tokens(40)), read(cache, tokens(50))
    for entry in (first, second, longer):
        cache.release(entry, keep=True)
    assert cache.num_idle_tokens == 64


def test_an_unfinished_prompt_leaves_what_was_read_of_it(cache: KVCache) -> None:
    entry = cache.allocate(tokens(80))
    assert entry is not None
    entry.num_computed = 32
    cache.release(entry, keep=True)
    assert cache.num_idle_tokens == 32
    again = cache.allocate(tokens(80))
    assert again is not None
    assert again.num_computed == 32


def test_clear_frees_every_idle_entry(cache: KVCache, storage: Recorder) -> None:
    entry = read(cache, tokens(40))
    cache.release(entry, keep=True)
    cache.clear()
    assert cache.num_idle_tokens == 0
    assert storage.freed == [entry]


@pytest.mark.parametrize("other", [None, TWO])
def test_an_adapter_never_gets_what_another_or_the_base_has_read(
    cache: KVCache, storage: Recorder, other: AdapterRef | None
) -> None:
    read(cache, tokens(40), other)  # goes on running
    idle = read(cache, tokens(40, 1000), other)
    cache.release(idle, keep=True)
    for start in (0, 1000):
        entry = cache.allocate(tokens(40, start), ONE)
        assert entry is not None
        assert entry.num_computed == 0
        cache.release(entry, keep=False)
    assert storage.copied == []
    own = cache.allocate(tokens(40, 1000), other)
    assert own is idle
    assert own.num_computed == 39


def test_the_same_text_is_kept_once_for_each_adapter(storage: Recorder) -> None:
    cache = KVCache(20 * BLOCK_SIZE, storage)
    entries = [read(cache, tokens(30), adapter) for adapter in (None, ONE, ONE)]
    for entry in entries:
        cache.release(entry, keep=True)
    assert cache.num_idle_tokens == 2 * 32


def test_forgetting_an_adapter_frees_its_idle_prefixes_alone(storage: Recorder) -> None:
    cache = KVCache(20 * BLOCK_SIZE, storage)
    base, one = read(cache, tokens(30)), read(cache, tokens(30), ONE)
    cache.release(base, keep=True)
    cache.release(one, keep=True)
    cache.forget(ONE)
    cache.forget(TWO)
    assert storage.freed == [one]
    assert cache.num_idle_tokens == 32
