"""Which examples make up each step: a function of seed, epoch and the step's number, so that a run can go on anywhere.

What is computed at once is decided elsewhere (flat_row.py): nothing is padded, so different lengths waste nothing.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Final, TypeVar

from mini_claude.training.arguments import TrainingArguments

# Examples of like lengths are found among those of this many steps: enough to find some, few enough that every epoch
# brings other examples together.
_POOL_STEPS: Final = 8

_T = TypeVar("_T")

MicroBatch = tuple[int, ...]  # indices of examples


@dataclass(frozen=True, slots=True)
class Step:
    """`epoch` is how many passes over the data are done after it. Each process takes every n-th micro-batch."""

    epoch: float
    micro_batches: tuple[MicroBatch, ...]


class BatchPlan:
    """The steps of a run over examples with these numbers of tokens.

    Length-grouped: a micro-batch has `per_device_train_batch_size` examples, and the examples of a step are about as
    long as each other, so that no process waits long for the others. Packed: a micro-batch has as many examples as fit
    into `per_device_train_batch_size` times `max_length` tokens, so that all steps weigh about the same.
    """

    def __init__(self, lengths: Sequence[int], arguments: TrainingArguments, num_processes: int = 1) -> None:
        self._lengths = lengths
        self._arguments = arguments
        self._micro_batches_per_step = arguments.gradient_accumulation_steps * num_processes
        self._epoch = lru_cache(maxsize=1)(self._make_epoch)
        self._starts = [0]  # the first step of each epoch that is known so far
        self.num_steps = arguments.max_steps or self._steps_in(arguments.num_train_epochs)

    def step(self, number: int) -> Step:
        """Step `number`, counted from 0."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
        epoch = next(i for i, start in enumerate(self._starts) if start > number) - 1
        steps = self._epoch(epoch)
        index = number - self._starts[epoch]
        return Step(epoch + (index + 1) / len(steps), steps[index])

    def _steps_in(self, num_epochs: float) -> int:
        whole, part = divmod(num_epochs, 1)
        num_steps = sum(len(self._epoch(epoch)) for epoch in range(int(whole)))
        return max(1, num_steps + (ceil(part * len(self._epoch(int(whole)))) if part else 0))

    def _make_epoch(self, epoch: int) -> list[tuple[MicroBatch, ...]]:
        generator = random.Random(f"{self._arguments.seed} {epoch}")  # noqa: S311
        order = list(range(len(self._lengths)))
        generator.shuffle(order)
        if self._arguments.batching == "packed":
            return list(_chunks(list(self._packed(order)), self._micro_batches_per_step))
        size = self._arguments.per_device_train_batch_size
        steps = []
        for pool in _chunks(order, _POOL_STEPS * size * self._micro_batches_per_step):
            by_length = sorted(pool, key=self._lengths.__getitem__, reverse=True)
            micro_batches = [tuple(chunk) for chunk in _chunks(by_length, size)]
            steps += list(_chunks(micro_batches, self._micro_batches_per_step))
        generator.shuffle(steps)
        return steps

    def _packed(self, order: Sequence[int]) -> Iterator[MicroBatch]:
        capacity = self._arguments.per_device_train_batch_size * self._arguments.max_length
        batch: list[int] = []
        room = capacity
        for index in order:
            if batch and self._lengths[index] > room:
                yield tuple(batch)
                batch, room = [], capacity
            batch.append(index)
            room -= self._lengths[index]
        if batch:
            yield tuple(batch)


def _chunks(items: Sequence[_T], size: int) -> Iterator[tuple[_T, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])
