"""Runs of places in one pool: that tokens keep together, survive a new layout, and that the budget always fits."""

from random import Random

import pytest
import torch

from mini_claude.engine.kv_cache import CacheEntry, KVCache
from mini_claude.engine.kv_pool import KVPool

NUM_TOKENS, NUM_KV_HEADS, KEY_DIM, VALUE_DIM = 160, 2, 3, 4
CPU = torch.device("cpu")


@pytest.fixture
def pool() -> KVPool:
    return KVPool(NUM_TOKENS, CPU)


def entry_of(num_tokens: int, first: int = 0) -> CacheEntry:
    return CacheEntry(list(range(first, first + num_tokens)))


@torch.inference_mode()
def write(pool: KVPool, entry: CacheEntry) -> None:
    """Every unread token's id as its keys and values."""
    key = torch.zeros(NUM_KV_HEADS, 1, KEY_DIM)
    keys, values = pool.layer(0, key, torch.zeros(NUM_KV_HEADS, 1, VALUE_DIM))
    start = pool.reserve(entry).start
    for tensor in (keys, values):
        ids = torch.tensor(entry.token_ids[entry.num_computed :], dtype=torch.float32)
        tensor[start + entry.num_computed : start + len(entry.token_ids)] = ids[:, None, None]
    entry.num_computed = len(entry.token_ids)


def held(pool: KVPool, entry: CacheEntry) -> list[int]:
    """The token ids that are where this entry's should be."""
    start = pool.reserve(entry).start
    keys, values = (tensor[start : start + entry.num_computed] for tensor in pool.layers[0])
    assert (keys == keys[:, :1, :1]).all()
    assert torch.equal(keys[:, 0, 0], values[:, 0, 0])
    return [int(number) for number in keys[:, 0, 0]]


def test_sequences_grow_side_by_side_without_a_new_layout(pool: KVPool) -> None:
    entries = [entry_of(20, 100 * number) for number in range(4)]
    for entry in entries:
        write(pool, entry)
    for _ in range(8):
        for entry in entries:
            entry.token_ids.append(7)
            write(pool, entry)
    assert pool.num_layouts == 0
    assert [held(pool, entry) for entry in entries] == [entry.token_ids for entry in entries]


def test_a_run_that_meets_another_is_laid_out_anew_and_all_keep_their_tokens(pool: KVPool) -> None:
    entries = [entry_of(20, 100 * number) for number in range(4)]
    for entry in entries:
        write(pool, entry)
    for number in range(60):
        entries[1].token_ids.append(900 + number)
        write(pool, entries[1])
    assert 0 < pool.num_layouts < 10
    assert [held(pool, entry) for entry in entries] == [entry.token_ids for entry in entries]


def test_a_copied_prefix_is_independent_of_its_source(pool: KVPool) -> None:
    source, target = entry_of(50), entry_of(70)
    write(pool, source)
    pool.copy_prefix(source, target, 40)
    target.num_computed = 40
    target.token_ids[40:] = range(500, 530)
    write(pool, target)
    assert held(pool, source) == list(range(50))
    assert held(pool, target) == [*range(40), *range(500, 530)]
    pool.free(source)
    assert held(pool, target) == [*range(40), *range(500, 530)]


def test_an_idle_prefix_gives_up_its_room(pool: KVPool) -> None:
    idle, other = entry_of(100), entry_of(150)
    write(pool, idle)
    pool.truncate(idle, 10)
    idle.token_ids, idle.num_computed = idle.token_ids[:10], 10
    write(pool, other)
    assert held(pool, other) == list(range(150))
    assert held(pool, idle) == list(range(10))


def test_an_entry_that_never_ran_can_be_freed(pool: KVPool) -> None:
    pool.free(entry_of(10))


def test_what_the_cache_allows_fits_the_pool_whatever_comes_and_goes(pool: KVPool) -> None:
    random = Random(4)
    cache = KVCache(NUM_TOKENS, pool)
    running: list[CacheEntry] = []
    texts = [[random.randrange(1000) for _ in range(60)] for _ in range(3)]
    for _ in range(1500):
        if running and random.random() < 0.8:
            entry = random.choice(running)
            if cache.grow(entry, len(entry.token_ids) + 1):
                entry.token_ids.append(random.randrange(1000))
                write(pool, entry)
            else:
                running.remove(entry)
                cache.release(entry, keep=random.random() < 0.5)
        else:
            prompt = [*random.choice(texts)[: random.randrange(1, 60)], random.randrange(1000)]
            if (new := cache.allocate(prompt)) is not None:
                running.append(new)
                write(pool, new)
        assert all(held(pool, entry) == entry.token_ids for entry in running)
    assert pool.num_layouts > 10
