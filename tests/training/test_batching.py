from collections import Counter

import pytest

from mini_claude.training.arguments import TrainingArguments
from mini_claude.training.batching import BatchPlan, MicroBatch, Step

LENGTHS = [3 + 7 * i % 40 for i in range(101)]


def plan(**changes: object) -> BatchPlan:
    settings: dict[str, object] = {"per_device_train_batch_size": 4, "num_train_epochs": 2.0, **changes}
    return BatchPlan(LENGTHS, TrainingArguments(**settings))  # type: ignore[arg-type]


def steps(of: BatchPlan) -> list[Step]:
    return [of.step(number) for number in range(of.num_steps)]


@pytest.mark.parametrize("batching", ["length_grouped", "packed"])
def test_every_epoch_has_every_example_once(batching: str) -> None:
    counts: dict[int, Counter[int]] = {0: Counter(), 1: Counter()}
    for step in steps(plan(batching=batching, max_length=40)):
        counts[int(step.epoch - 1e-9)].update(index for batch in step.micro_batches for index in batch)
    for count in counts.values():
        assert count == Counter(range(len(LENGTHS)))


@pytest.mark.parametrize("batching", ["length_grouped", "packed"])
def test_any_step_is_the_same_whether_or_not_those_before_it_were_asked_for(batching: str) -> None:
    in_order = steps(plan(batching=batching))
    for number in (len(in_order) - 1, 0, len(in_order) // 2):
        assert plan(batching=batching).step(number) == in_order[number]


def test_seed_and_epoch_change_the_order() -> None:
    first = plan(num_train_epochs=1.0)
    assert steps(first) != steps(plan(num_train_epochs=1.0, seed=1))
    both = [step.micro_batches for step in steps(plan())]
    assert both[: len(both) // 2] != both[len(both) // 2 :]


def test_a_step_has_examples_of_like_lengths() -> None:
    spreads = [
        max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch)
        for step in steps(plan())
        for batch in step.micro_batches
    ]
    assert sum(spreads) / len(spreads) < 10  # of 40; at random it is 26


def members(batches: tuple[MicroBatch, ...]) -> tuple[int, ...]:
    return tuple(index for batch in batches for index in batch)


@pytest.mark.parametrize(("size", "accumulation", "processes"), [(1, 16, 1), (4, 4, 1), (2, 2, 4)])
def test_the_same_examples_are_in_a_step_however_it_is_cut(size: int, accumulation: int, processes: int) -> None:
    whole = steps(plan(per_device_train_batch_size=16))
    arguments = TrainingArguments(
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, num_train_epochs=2.0
    )
    cut = steps(BatchPlan(LENGTHS, arguments, processes))
    assert [members(step.micro_batches) for step in cut] == [members(step.micro_batches) for step in whole]


def test_packed_micro_batches_are_full_and_not_over() -> None:
    packed = plan(batching="packed", per_device_train_batch_size=2, max_length=50, num_train_epochs=1.0)
    sizes = [sum(LENGTHS[i] for i in batch) for step in steps(packed) for batch in step.micro_batches]
    assert max(sizes) <= 100
    assert min(sizes[:-1]) > 100 - max(LENGTHS)


def test_parts_of_epochs_and_a_number_of_steps_are_honoured() -> None:
    assert plan(num_train_epochs=1.0).num_steps == 26
    assert plan(num_train_epochs=0.5).num_steps == 13
    assert plan(num_train_epochs=2.5).num_steps == 65
    assert plan(num_train_epochs=0.001).num_steps == 1
    assert plan(max_steps=1000).num_steps == 1000
    assert plan(max_steps=1000).step(999).epoch == pytest.approx(1000 / 26)
