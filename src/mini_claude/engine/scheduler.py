"""What the model reads in the next step. Torch-free.

A step has a budget of tokens. Sequences that decode come first, one token each, so that running replies never
wait for a newcomer's long prompt; what is left of the budget goes to prompts, in chunks, oldest first. A free seat goes
to the owners in turn, and of one's requests to the oldest. When the KV cache is full, the youngest running sequence is
preempted: its room is taken and it is recomputed later.
"""

from collections import deque

import msgspec

from mini_claude.engine.admission import Turns
from mini_claude.engine.kv_cache import KVCache
from mini_claude.engine.sequence import Sequence, Status


class ScheduledChunk(msgspec.Struct, frozen=True):
    """Tokens `start` to `start + num_tokens` of a sequence, which the model is to read.

    `completes`: the sequence is then read to its end, so that its next token can be sampled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    completes: bool

    @property
    def token_ids(self) -> list[int]:
        """What the model reads."""
        return self.sequence.token_ids[self.start : self.start + self.num_tokens]


class Scheduler:
    """Owns the queue of waiting sequences and the list of running ones, oldest first."""

    def __init__(self, cache: KVCache, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._cache = cache
        self._turns = Turns()
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_num_seqs = min(max_num_seqs, max_num_batched_tokens)  # so that every decode fits a step

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence, *, keep_prefix: bool) -> None:
        """Take a sequence out, in whatever state it is, and give back its room."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._release(sequence, keep=keep_prefix)
        sequence.status = Status.FINISHED

    def schedule(self) -> list[ScheduledChunk]:
        """The chunks of the next step, decodes first; empty when there is nothing to do."""
        num_preemptions = self.num_preemptions
        chunks, prompts = [], []
        for sequence in tuple(self.running):
            entry = sequence.entry
            if entry is None:  # preempted by an older one, just now
                continue
            if len(sequence.token_ids) - entry.num_computed > 1:
                prompts.append(sequence)
            elif self._has_room(sequence):
                chunks.append(_chunk(sequence, 1))
        budget = self._max_num_batched_tokens - len(chunks)
        for sequence in prompts:
            if sequence.entry is not None and budget > 0:
                chunks.append(_chunk(sequence, budget))
                budget -= chunks[-1].num_tokens
        while budget > 0 and self.num_preemptions == num_preemptions and (admitted := self._admit()):
            chunks.append(_chunk(admitted, budget))
            budget -= chunks[-1].num_tokens
        return chunks

    def _has_room(self, sequence: Sequence) -> bool:
        """Give a running sequence room for its last token; preempts younger ones, or itself where there are none."""
        while (entry := sequence.entry) is not None:
            if self._cache.grow(entry, len(sequence.token_ids)):
                return True
            self._preempt(self.running[-1])
        return False

    def _admit(self) -> Sequence | None:
        """Start the sequence whose turn it is if there is a seat and room for all that it has to read."""
        if not self.waiting or len(self.running) >= self._max_num_seqs:
            return None
        sequence = self._turns.next(self.waiting, self.running)
        entry = self._cache.allocate(sequence.token_ids, sequence.request.adapter)
        if entry is None:
            return None
        self.waiting.remove(sequence)
        self._turns.take(sequence.request.owner)
        sequence.entry, sequence.status = entry, Status.RUNNING
        if sequence.num_generated == 0:  # else it was preempted: its own history is no saving
            sequence.num_cached_tokens = entry.num_computed
        self.running.append(sequence)
        return sequence

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence, keep=False)
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence, *, keep: bool) -> None:
        assert sequence.entry is not None
        self._cache.release(sequence.entry, keep=keep)
        sequence.entry = None


def _chunk(sequence: Sequence, budget: int) -> ScheduledChunk:
    start = sequence.num_computed_tokens
    num_unread = len(sequence.token_ids) - start
    num_tokens = min(num_unread, budget)
    return ScheduledChunk(sequence, start, num_tokens, completes=num_tokens == num_unread)
