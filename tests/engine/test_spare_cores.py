"""How many threads an engine takes beside others, by a clock and a load of the test's own."""

import subprocess
import sys
import time

import psutil
import pytest

from mini_claude.engine.spare_cores import LOOK_SECONDS, SpareCores, allowed_cores, others_seconds


class Machine:
    """Cores of which others keep `busy` busy, while `seconds` pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.others = 0.0

    def spend(self, seconds: float, busy: float) -> None:
        self.now += seconds
        self.others += seconds * busy

    def cores(self, num_threads: int, num_cores: int) -> SpareCores:
        return SpareCores(num_threads, num_cores, others=lambda: self.others, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("num_threads", "num_cores", "busy", "expected"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.4, 2),  # what clients and HTTP take is no reason
        (2, 2, 0.67, 1),  # the share that one busy program gets beside two threads
        (2, 2, 1.3, 1),
        (2, 2, 2.0, 1),
        (8, 8, 0.9, 7),
        (8, 16, 1.0, 8),  # a physical core each, and logical ones to spare
        (8, 16, 12.0, 4),
        (1, 8, 0.0, 1),
    ],
)
def test_others_are_given_their_cores_and_one_thread_is_left(
    num_threads: int, num_cores: int, busy: float, expected: int
) -> None:
    machine = Machine()
    cores = machine.cores(num_threads, num_cores)
    assert cores.num_threads == num_threads
    machine.spend(LOOK_SECONDS, busy)
    assert cores.num_threads == expected
    machine.spend(LOOK_SECONDS, 0.0)
    assert cores.num_threads == num_threads


def test_it_looks_only_now_and_then() -> None:
    machine = Machine()
    cores = machine.cores(2, 2)
    machine.spend(LOOK_SECONDS / 2, 2.0)
    assert cores.num_threads == 2
    machine.spend(LOOK_SECONDS / 2, 2.0)
    assert cores.num_threads == 1


def test_another_busy_program_counts() -> None:
    assert allowed_cores()
    before = others_seconds()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        until = time.perf_counter() + 1.0
        while time.perf_counter() < until:  # computing here too
            assert busy.poll() is None
        busy.kill()
    assert others_seconds() - before > 0.3


def test_what_this_process_computes_itself_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = psutil.cpu_times(percpu=True)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: times)
    before, own = others_seconds(), time.process_time()
    while time.process_time() < own + 0.1:
        pass
    assert others_seconds() <= before - 0.1
