"""From when the pieces of replies came to what is said about them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mini_claude.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Reply:
    """Times on one clock, in seconds: when it was asked for, and when each piece of its text came."""

    asked: float
    pieces: tuple[float, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """So many clients at once. Times in milliseconds, memory of the engine's process in megabytes."""

    concurrency: int
    tokens_per_second: float
    first_p50: float
    first_p95: float
    between_p50: float
    between_p95: float
    between_p99: float
    memory_mb: float


def measurement(replies: Sequence[Reply], memory_mb: float) -> Measurement:
    """What the clients of one measurement saw. Raises `InvalidRequest` where a reply had no text."""
    if any(not reply.pieces for reply in replies):
        raise InvalidRequest("A reply had no text, so there is nothing to measure; ask for more tokens.")
    first = [1e3 * (reply.pieces[0] - reply.asked) for reply in replies]
    between = [1e3 * (after - before) for reply in replies for before, after in pairwise(reply.pieces)] or [math.nan]
    seconds = max(reply.pieces[-1] for reply in replies) - min(reply.asked for reply in replies)
    return Measurement(
        len(replies),
        sum(reply.num_tokens for reply in replies) / seconds,
        percentile(first, 0.5),
        percentile(first, 0.95),
        percentile(between, 0.5),
        percentile(between, 0.95),
        percentile(between, 0.99),
        memory_mb,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is no smaller than this share of them (the nearest-rank method)."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
