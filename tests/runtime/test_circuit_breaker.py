"""When a crashing engine may be started again, by a clock that the test moves."""

import pytest

from mini_claude.runtime.circuit_breaker import CircuitBreaker

from ..clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(max_crashes=3, window_seconds=120.0, clock=clock)


def crash(breaker: CircuitBreaker, clock: Clock, *times: float) -> None:
    for clock.now in times:
        breaker.record_crash()


def test_fewer_crashes_than_the_limit_leave_it_closed(breaker: CircuitBreaker, clock: Clock) -> None:
    assert breaker.retry_after() is None
    crash(breaker, clock, 1000, 1001)
    assert breaker.retry_after() is None


def test_the_wait_lasts_until_the_oldest_crash_leaves_the_window(breaker: CircuitBreaker, clock: Clock) -> None:
    crash(breaker, clock, 1000, 1010, 1030)
    assert breaker.retry_after() == 90
    clock.now = 1119
    assert breaker.retry_after() == 1
    clock.now = 1120
    assert breaker.retry_after() is None


def test_a_crash_after_the_wait_counts_with_those_still_in_the_window(breaker: CircuitBreaker, clock: Clock) -> None:
    crash(breaker, clock, 1000, 1050, 1060, 1125)
    assert breaker.retry_after() == 45  # until 1050 is two minutes ago


def test_crashes_far_apart_never_open_it(breaker: CircuitBreaker, clock: Clock) -> None:
    for time in range(1000, 3000, 60):
        crash(breaker, clock, time)
        assert breaker.retry_after() is None


def test_one_crash_is_enough_where_one_is_allowed(clock: Clock) -> None:
    breaker = CircuitBreaker(max_crashes=1, window_seconds=5.0, clock=clock)
    crash(breaker, clock, 1000, 1004)
    assert breaker.retry_after() == 5
