"""Who computes what in a step. No torch: reading is simulated by advancing counters."""

from dataclasses import replace
from random import Random

import pytest

from mini_claude.engine.kv_cache import BLOCK_SIZE, CacheEntry, KVCache
from mini_claude.engine.reply_text import ReplyText
from mini_claude.engine.scheduler import Scheduler
from mini_claude.engine.sequence import Sequence, Status
from mini_claude.models.echo_model import ByteCodec
from mini_claude.types import GenerationRequest, SamplingParams


class NoStorage:
    def can_reuse(self, source: CacheEntry, num_tokens: int) -> bool:
        return True

    def copy_prefix(self, source: CacheEntry, target: CacheEntry, num_tokens: int) -> None: ...

    def truncate(self, entry: CacheEntry, num_tokens: int) -> None: ...

    def free(self, entry: CacheEntry) -> None: ...


def scheduler_with(num_blocks: int = 100, max_num_seqs: int = 8, max_num_batched_tokens: int = 64) -> Scheduler:
    return Scheduler(KVCache(num_blocks * BLOCK_SIZE, NoStorage()), max_num_seqs, max_num_batched_tokens)


def sequence_of(num_tokens: int, name: int = 0) -> Sequence:
    """A prompt that shares no prefix with a sequence of another name."""
    request = GenerationRequest(str(name), tuple(range(1000 * name, 1000 * name + num_tokens)), SamplingParams())
    return Sequence(request, 1000, ReplyText(ByteCodec(), ()), Random(0))


def step(scheduler: Scheduler) -> list[tuple[str, int]]:
    """Schedule, pretend to compute and sample; who read how many tokens."""
    chunks = scheduler.schedule()
    result = [(chunk.sequence.request.request_id, chunk.num_tokens) for chunk in chunks]
    completing = [chunk.sequence for chunk in chunks if chunk.completes]
    for chunk in chunks:
        assert chunk.sequence.entry is not None
        chunk.sequence.entry.num_computed += chunk.num_tokens
    for sequence in completing:
        sequence.token_ids.append(7)
    return result


def test_a_prompt_is_read_in_chunks_of_the_budget_then_decoded() -> None:
    scheduler = scheduler_with(max_num_batched_tokens=16)
    scheduler.add(sequence_of(40))
    assert [step(scheduler) for _ in range(5)] == [[("0", 16)], [("0", 16)], [("0", 8)], [("0", 1)], [("0", 1)]]


def test_an_arriving_request_joins_at_the_next_step() -> None:
    scheduler = scheduler_with()
    scheduler.add(sequence_of(10, 1))
    step(scheduler)
    scheduler.add(sequence_of(10, 2))
    assert step(scheduler) == [("1", 1), ("2", 10)]
    assert step(scheduler) == [("1", 1), ("2", 1)]


def test_decodes_come_before_a_long_prompt_and_neither_starves() -> None:
    scheduler = scheduler_with(max_num_batched_tokens=16)
    scheduler.add(sequence_of(5, 1))
    step(scheduler)
    scheduler.add(sequence_of(40, 2))
    assert [step(scheduler) for _ in range(3)] == [[("1", 1), ("2", 15)], [("1", 1), ("2", 15)], [("1", 1), ("2", 10)]]


def test_prompts_are_admitted_first_come_first_served() -> None:
    scheduler = scheduler_with(max_num_batched_tokens=16)
    for name in (1, 2, 3):
        scheduler.add(sequence_of(10, name))
    assert step(scheduler) == [("1", 10), ("2", 6)]
    assert step(scheduler) == [("1", 1), ("2", 4), ("3", 10)]


def test_owners_share_the_seats_whoever_came_first() -> None:
    scheduler = scheduler_with(max_num_seqs=2)
    for name, owner in enumerate("aaab"):
        sequence = sequence_of(10, name)
        sequence.request = replace(sequence.request, owner=owner)
        scheduler.add(sequence)
    assert [name for name, _ in step(scheduler)] == ["0", "3"]
    scheduler.finish(scheduler.running[0], keep_prefix=False)
    assert [name for name, _ in step(scheduler)] == ["3", "1"]


def test_no_more_than_max_num_seqs_run() -> None:
    scheduler = scheduler_with(max_num_seqs=2)
    sequences = [sequence_of(4, name) for name in (1, 2, 3)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert step(scheduler) == [("1", 4), ("2", 4)]
    scheduler.finish(sequences[0], keep_prefix=False)
    assert step(scheduler) == [("2", 1), ("3", 4)]


def test_a_full_cache_makes_newcomers_wait() -> None:
    scheduler = scheduler_with(num_blocks=4)
    scheduler.add(sequence_of(3 * BLOCK_SIZE, 1))
    scheduler.add(sequence_of(2 * BLOCK_SIZE, 2))
    assert step(scheduler) == [("1", 3 * BLOCK_SIZE)]
    assert len(scheduler.waiting) == 1


def test_the_youngest_is_preempted_and_recomputed_with_what_it_had_generated() -> None:
    scheduler = scheduler_with(num_blocks=4)
    old, young = sequence_of(2 * BLOCK_SIZE - 1, 1), sequence_of(2 * BLOCK_SIZE - 1, 2)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler)
    step(scheduler)  # both grow to two full blocks
    assert step(scheduler) == [("1", 1)]
    assert scheduler.num_preemptions == 1
    assert young.status is Status.WAITING
    assert young.num_computed_tokens == 0
    scheduler.finish(old, keep_prefix=False)
    assert step(scheduler) == [("2", 2 * BLOCK_SIZE + 1)]


def test_a_preempted_sequence_is_first_in_the_queue() -> None:
    scheduler = scheduler_with(num_blocks=4, max_num_seqs=2)
    sequences = [sequence_of(2 * BLOCK_SIZE, name) for name in (1, 2, 3)]
    for sequence in sequences:
        scheduler.add(sequence)
    step(scheduler)
    step(scheduler)
    assert list(scheduler.waiting) == [sequences[1], sequences[2]]


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_finish_gives_back_the_room_of_a_sequence_in_any_state(num_steps: int) -> None:
    cache = KVCache(10 * BLOCK_SIZE, NoStorage())
    scheduler = Scheduler(cache, 8, 16)
    sequence = sequence_of(40)
    scheduler.add(sequence)
    for _ in range(num_steps):
        step(scheduler)
    scheduler.finish(sequence, keep_prefix=False)
    assert cache.num_used_tokens == 0
    assert not scheduler.waiting
    assert scheduler.schedule() == []


def test_more_decodes_than_the_budget_cannot_starve_anyone() -> None:
    scheduler = scheduler_with(max_num_seqs=8, max_num_batched_tokens=4)
    for name in range(8):
        scheduler.add(sequence_of(1, name))
    assert len(step(scheduler)) == 4
    assert len(step(scheduler)) == 4
    assert len(scheduler.running) == 4
