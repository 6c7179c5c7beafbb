"""The signal to end: heard at once, passed on after a time."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from mini_claude.web.shutdown import Shutdown

from .conftest import eventually


@pytest.fixture
def passed_on() -> Iterator[list[int]]:
    """What came through to whoever handled signals before, as uvicorn does."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: heard.append(number)) for number in signals()}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def signals() -> tuple[signal.Signals, ...]:
    return signal.SIGTERM, signal.SIGINT


def is_set(shutdown: Shutdown) -> bool:
    return shutdown._event.is_set()


async def test_without_a_time_to_drain_it_is_passed_on_at_once(passed_on: list[int]) -> None:
    shutdown = Shutdown()
    shutdown.listen()
    assert not shutdown.announced
    os.kill(os.getpid(), signal.SIGTERM)
    assert passed_on == [signal.SIGTERM]
    await asyncio.wait_for(shutdown.wait(), 5)
    assert shutdown.announced
    shutdown.close()


async def test_it_is_announced_first_and_passed_on_when_the_time_is_over(passed_on: list[int]) -> None:
    shutdown = Shutdown(drain_seconds=0.05)
    shutdown.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert shutdown.announced
    assert (passed_on, is_set(shutdown)) == ([], False)
    await eventually(lambda: passed_on == [signal.SIGTERM])
    await asyncio.wait_for(shutdown.wait(), 5)
    shutdown.close()


@pytest.mark.parametrize("first", signals())
async def test_a_second_signal_and_control_c_do_not_wait(passed_on: list[int], first: signal.Signals) -> None:
    shutdown = Shutdown(drain_seconds=600)
    shutdown.listen()
    os.kill(os.getpid(), first)
    if first == signal.SIGTERM:
        assert passed_on == []
        os.kill(os.getpid(), signal.SIGTERM)
    assert passed_on == [first]
    shutdown.close()
