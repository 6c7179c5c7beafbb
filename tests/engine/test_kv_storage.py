"""Rows of keys and values: where they are, that they keep what was written, and that memory is given back."""

import sys
import weakref
from mmap import ALLOCATIONGRANULARITY

import pytest
import torch

from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.kv_storage import KVStorage, Row

NUM_LAYERS, NUM_KV_HEADS, KEY_DIM, VALUE_DIM = 2, 3, 4, 5
Layers = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def storage() -> KVStorage:
    return KVStorage()


def entry_of(num_tokens: int) -> CacheEntry:
    return CacheEntry(list(range(num_tokens)))


@torch.inference_mode()
def write(row: Row, entry: CacheEntry, num_tokens: int) -> Layers:
    """Append random tokens in every layer, as a step does; what was written."""
    written = []
    for layer in range(NUM_LAYERS):
        key = torch.randn(NUM_KV_HEADS, num_tokens, KEY_DIM)
        value = torch.randn(NUM_KV_HEADS, num_tokens, VALUE_DIM)
        row.append(layer, key, value, entry.num_computed)
        written.append((key, value))
    entry.num_computed += num_tokens
    return written


def written_entry(storage: KVStorage, num_tokens: int) -> tuple[CacheEntry, Layers]:
    entry = entry_of(num_tokens)
    return entry, write(storage.reserve(entry), entry, num_tokens)


def holds(row: Row, expected: Layers, num_tokens: int) -> bool:
    return all(
        torch.equal(stored[row.index, :, :num_tokens], wanted[:, :num_tokens])
        for layer, pair in enumerate(expected)
        for stored, wanted in zip(row.arena.layers[layer], pair, strict=True)
    )


def test_what_is_appended_comes_back_with_all_that_was_there(storage: KVStorage) -> None:
    entry = entry_of(10)
    row = storage.reserve(entry)
    [(first_key, first_value), _] = write(row, entry, 6)
    key, value = torch.randn(NUM_KV_HEADS, 4, KEY_DIM), torch.randn(NUM_KV_HEADS, 4, VALUE_DIM)
    with torch.inference_mode():
        keys, values = row.append(0, key, value, 6)
    assert torch.equal(keys, torch.cat((first_key, key), dim=1))
    assert torch.equal(values, torch.cat((first_value, value), dim=1))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system takes pages back when it likes")
def test_a_row_that_is_left_gives_its_memory_back_and_its_neighbours_keep_theirs(storage: KVStorage) -> None:
    entries = [written_entry(storage, 256) for _ in range(3)]
    row = storage.reserve(entries[1][0])
    keys, values = row.arena.layers[0]
    storage.free(entries[1][0])
    page = ALLOCATIONGRANULARITY // keys.element_size()  # numbers; those of a page that neighbours share stay
    assert all((tensor[row.index] == 0).sum() >= tensor[row.index].numel() - 2 * page for tensor in (keys, values))
    assert (keys[row.index] == 0).any()
    for entry, written in (entries[0], entries[2]):
        assert holds(storage.reserve(entry), written, 256)


@pytest.mark.parametrize(
    ("num_tokens", "capacity"), [(1, 256), (256, 256), (257, 512), (1024, 1024), (1025, 2048), (5000, 5120)]
)
def test_a_row_has_room_for_the_whole_text_and_little_more(storage: KVStorage, num_tokens: int, capacity: int) -> None:
    assert storage.reserve(entry_of(num_tokens)).arena.capacity == capacity


def test_an_arena_holds_no_more_than_2048_tokens_unless_one_row_needs_them(storage: KVStorage) -> None:
    arenas = [storage.reserve(entry_of(num_tokens)).arena for num_tokens in (1, 100, 200, 500, 1000, 2000)]
    assert max(arena.num_rows * arena.capacity for arena in arenas) == 2048
    assert storage.reserve(entry_of(3000)).arena.num_rows == 1


def test_a_text_that_outgrows_its_row_moves_and_keeps_its_tokens(storage: KVStorage) -> None:
    neighbour, _ = written_entry(storage, 256)
    entry, written = written_entry(storage, 256)
    old = storage.reserve(entry)
    entry.token_ids.append(256)
    row = storage.reserve(entry)
    assert (old.arena.capacity, row.arena.capacity) == (256, 512)
    assert holds(row, written, 256)
    assert storage.reserve(entry_of(3)) == old
    assert storage.reserve(neighbour).arena is old.arena


def test_the_lowest_free_row_is_taken(storage: KVStorage) -> None:
    entries = [entry_of(10) for _ in range(5)]
    assert [storage.reserve(entry).index for entry in entries] == [0, 1, 2, 3, 4]
    storage.free(entries[3])
    storage.free(entries[1])
    assert [storage.reserve(entry_of(10)).index for _ in range(3)] == [1, 3, 5]


def test_a_full_arena_is_followed_by_another(storage: KVStorage) -> None:
    rows = [storage.reserve(entry_of(1000)) for _ in range(3)]
    assert [row.index for row in rows] == [0, 1, 0]
    assert rows[0].arena is rows[1].arena is not rows[2].arena


def test_the_last_entry_to_leave_takes_the_arena_with_it(storage: KVStorage) -> None:
    entries = [written_entry(storage, 10)[0] for _ in range(2)]
    arena = weakref.ref(storage.reserve(entries[0]).arena)
    storage.free(entries[0])
    assert arena() is not None
    storage.free(entries[1])
    assert arena() is None


def test_an_entry_that_never_ran_can_be_freed(storage: KVStorage) -> None:
    storage.free(entry_of(10))


def test_moving_the_only_row_gives_memory_back_layer_by_layer(storage: KVStorage) -> None:
    entry, written = written_entry(storage, 2048)
    old = storage.reserve(entry)
    entry.token_ids.append(2048)
    assert holds(storage.reserve(entry), written, 2048)
    assert not old.arena.layers


def test_a_copied_prefix_is_independent_and_has_room_for_its_own_text(storage: KVStorage) -> None:
    source, written = written_entry(storage, 100)
    target = entry_of(300)
    storage.copy_prefix(source, target, 70)
    row = storage.reserve(target)
    assert row.arena.capacity == 512
    storage.free(source)
    source.num_computed = 0
    write(storage.reserve(source), source, 100)
    assert holds(row, written, 70)


def test_an_idle_prefix_moves_out_and_back_and_keeps_its_tokens(storage: KVStorage) -> None:
    neighbour, _ = written_entry(storage, 300)
    entry, written = written_entry(storage, 500)
    shared = storage.reserve(entry)
    storage.truncate(entry, 130)
    assert storage.reserve(entry_of(300)) == shared  # its row is free for another
    entry.token_ids = entry.token_ids[:130]
    row = storage.reserve(entry)
    assert row.arena.capacity == 256
    assert holds(row, written, 130)
    assert storage.reserve(neighbour).arena is shared.arena


def test_a_long_prefix_stays_where_it_is_unless_much_room_is_left(storage: KVStorage) -> None:
    entry, written = written_entry(storage, 2000)
    row = storage.reserve(entry)
    storage.truncate(entry, 1900)
    entry.token_ids = entry.token_ids[:1900]
    assert storage.reserve(entry) == row
    storage.truncate(entry, 1200)
    entry.token_ids = entry.token_ids[:1200]
    assert storage.reserve(entry).arena.capacity == 1216
    assert holds(storage.reserve(entry), written, 1200)


def test_clearing_leaves_zeros_after_a_rows_own_tokens_and_touches_no_other_row(storage: KVStorage) -> None:
    (entry, written), (other, others) = written_entry(storage, 100), written_entry(storage, 128)
    row = storage.reserve(entry)
    with torch.inference_mode():
        row.arena.clear(row.index, 100, 110)
        row.arena.clear(row.index, 105, 128)
    keys, _ = row.arena.layers[0]
    assert holds(row, written, 100)
    assert not keys[row.index, :, 100:128].any()
    assert holds(storage.reserve(other), others, 128)
