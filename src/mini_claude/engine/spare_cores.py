"""How many cores other programs leave to an engine.

The threads of a matmul wait for each other some hundred times a token. One that shares its core with another busy
program keeps all others waiting whenever it does not run: on two cores and beside one such program, two threads give
0.4 to 0.6 of the tokens that one thread gives (benchmarks/RESULTS.md).
"""

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Final

import psutil

LOOK_SECONDS: Final = 0.2  # the kernel counts in hundredths of a second


def allowed_cores() -> list[int]:
    """The logical cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


def others_seconds() -> float:
    """How long, so far, the cores that this process may use were busy with others, all added. Nicer ones, which make
    room by themselves, do not count."""
    cores = allowed_cores()
    times = [each for core, each in enumerate(psutil.cpu_times(percpu=True)) if core in cores]
    return sum(each.user + each.system for each in times) - time.process_time()


class SpareCores:
    """`num_threads` is looked up anew five times a second at the most, so a step may ask for it."""

    def __init__(
        self,
        num_threads: int,
        num_cores: int | None = None,
        others: Callable[[], float] = others_seconds,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`num_threads` are used where nobody else computes, of `num_cores` (those that are allowed)."""
        self._most = self._num_threads = num_threads
        self._num_cores = len(allowed_cores()) if num_cores is None else num_cores
        self._others, self._clock = others, clock
        self._looked_at, self._seen = clock(), others()

    @property
    def num_threads(self) -> int:
        """As many as there are cores that others leave free at least by half; one at the least."""
        now = self._clock()
        seconds = now - self._looked_at
        if seconds >= LOOK_SECONDS:
            seen = self._others()
            busy = (seen - self._seen) / seconds
            self._num_threads = max(1, min(self._most, math.floor(self._num_cores - busy + 0.5)))
            self._looked_at, self._seen = now, seen
        return self._num_threads
