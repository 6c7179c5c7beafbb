"""Limits: each of them, when its window ends, and that running replies are given back however they end."""

import ast
import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from limits.errors import StorageError as UnreachableError
from limits.storage import Storage

import mini_claude
from mini_claude.data.limit_counters import LimitCounters
from mini_claude.data.records import Limits
from mini_claude.errors import InvalidRequest, RateLimited, StorageError
from mini_claude.services import limits as module
from mini_claude.services.identity import LOCAL
from mini_claude.services.limits import LimitService, LimitState, default_limits, redis_windows, span
from mini_claude.services.permit import UNLIMITED
from mini_claude.utils.config import Settings

from ..clock import Clock
from .conftest import Worker, left, limited

DAY = 86_400


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counters(clock: Clock) -> Iterator[LimitCounters]:
    counters = LimitCounters(None, clock)
    yield counters
    counters.close()


@pytest.fixture
async def service(counters: LimitCounters, clock: Clock) -> AsyncIterator[LimitService]:
    service = LimitService(Limits(), counters, counters, clock)
    yield service
    await service.aclose()


# --- windows ---


@pytest.mark.parametrize(("name", "seconds"), [("requests_per_minute", 60), ("requests_per_day", DAY)])
async def test_requests_are_refused_beyond_the_limit_until_the_window_ends(
    service: LimitService, clock: Clock, name: str, seconds: int
) -> None:
    caller, other = limited("c", **{name: 2}), limited("b", **{name: 2})
    await service.admit(caller, [None])
    clock.now += 10
    await service.admit(caller, [None, None])  # one request, however many replies it wants
    with pytest.raises(RateLimited, match=f"limit of 2 requests a {name.rpartition('_')[2]}") as caught:
        await service.admit(caller, [None])
    assert (caught.value.code, caught.value.limit) == ("rate_limit_exceeded", 2)
    assert caught.value.retry_after == seconds - 10
    assert await service.states(caller) == (LimitState(name, 2, 0, seconds - 10.0),)
    await service.admit(other, [None])
    clock.now += seconds - 10.5
    with pytest.raises(RateLimited):
        await service.admit(caller, [None])
    clock.now += 0.5
    await service.admit(caller, [None])
    assert await left(service, caller) == {name: 1}


@pytest.mark.parametrize(("name", "seconds"), [("tokens_per_minute", 60), ("tokens_per_day", DAY)])
async def test_tokens_are_reserved_then_replaced_by_what_the_reply_took(
    service: LimitService, clock: Clock, name: str, seconds: int
) -> None:
    caller = limited("c", **{name: 1000})
    (permit,) = await service.admit(caller, [300])
    assert await left(service, caller) == {name: 700}
    await permit.reserve(50)
    assert await left(service, caller) == {name: 650}
    (unnamed,) = await service.admit(caller, [None])
    assert await left(service, caller) == {name: 650 - module.RESERVED_TOKENS}
    await permit.settle(70)
    await permit.settle(0)  # only the first counts
    await unnamed.settle(900)
    assert await left(service, caller) == {name: 30}
    (last,) = await service.admit(caller, [300])  # something is left, so it is let in
    with pytest.raises(RateLimited, match="limit of 1000 tokens"):
        await service.admit(caller, [1])
    await last.settle(40)
    with pytest.raises(RateLimited) as caught:
        await service.admit(caller, [1])
    assert caught.value.retry_after == seconds
    clock.now += seconds
    await service.admit(caller, [1])


async def test_what_began_in_a_window_that_has_ended_does_not_change_the_next(
    service: LimitService, clock: Clock
) -> None:
    caller = limited(tokens_per_minute=1000)
    (old,) = await service.admit(caller, [500])
    clock.now += 60
    await old.settle(3)
    assert await left(service, caller) == {"tokens_per_minute": 1000}
    (old,) = await service.admit(caller, [500])
    clock.now += 60
    await service.admit(caller, [100])
    await old.settle(3)
    assert await left(service, caller) == {"tokens_per_minute": 900}


async def test_a_refusal_leaves_no_trace_in_any_count(service: LimitService) -> None:
    caller = limited(requests_per_minute=9, requests_per_day=9, tokens_per_minute=9, concurrent_replies=1)
    (permit,) = await service.admit(caller, [2])
    before = await service.states(caller)
    for max_tokens in ([2], [1, 1]):
        with pytest.raises(RateLimited, match="1 reply at once"):
            await service.admit(caller, max_tokens)
    assert await service.states(caller) == before
    await permit.settle(9)
    before = await service.states(caller)
    with pytest.raises(RateLimited, match="9 tokens a minute"):
        await service.admit(caller, [2])
    assert await service.states(caller) == before


async def test_the_nearest_limit_is_the_one_with_the_smallest_part_left(service: LimitService) -> None:
    caller = limited(requests_per_minute=10, tokens_per_day=1000, concurrent_replies=4)
    assert await service.nearest(LOCAL) is None
    await service.admit(caller, [100])
    assert await service.nearest(caller) == LimitState("concurrent_replies", 4, 3, 0.0)
    await service.admit(caller, [600])
    nearest = await service.nearest(caller)
    assert nearest is not None
    assert (nearest.name, nearest.remaining) == ("tokens_per_day", 300)


async def test_a_keys_own_limits_come_before_the_settings_and_0_is_none(counters: LimitCounters) -> None:
    settings = Settings(limit_requests_per_minute=5, limit_tokens_per_day=7)
    service = LimitService(default_limits(settings), counters, counters)
    assert service.of(LOCAL) == {"requests_per_minute": 5, "tokens_per_day": 7}
    own = limited(requests_per_minute=0, tokens_per_day=9, concurrent_replies=2)
    assert service.of(own) == {"tokens_per_day": 9, "concurrent_replies": 2}
    assert default_limits(Settings()) == Limits(0, 0, 0, 0, 0)


async def test_every_limit_has_its_setting() -> None:
    for name in asdict(Limits()):
        settings = Settings.model_validate({f"limit_{name}": 3})
        assert {key: value for key, value in asdict(default_limits(settings)).items() if value} == {name: 3}


async def test_a_caller_without_limits_costs_no_count_at_all(service: LimitService, counters: LimitCounters) -> None:
    counters.close()  # from here on every count is an error
    assert await service.admit(LOCAL, [None, 3]) == (UNLIMITED, UNLIMITED)
    await UNLIMITED.reserve(3)
    await UNLIMITED.settle(3)
    assert await service.states(LOCAL) == ()
    with pytest.raises(StorageError, match="cannot be kept"):
        await service.admit(limited(requests_per_day=1), [None])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((-1, "1 second"), (0.2, "1 second"), (1.1, "2 seconds"), (120, "120 seconds"), (121, "3 minutes")),
        *((7200, "120 minutes"), (7201, "3 hours"), (86_400, "24 hours")),
    ],
)
def test_a_wait_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert span(seconds) == words


# --- replies that run ---


async def test_who_is_cancelled_while_it_is_let_in_gives_everything_back(service: LimitService) -> None:
    caller = limited(concurrent_replies=1, tokens_per_minute=100)
    admitting = asyncio.create_task(service.admit(caller, [10]))
    await asyncio.sleep(0)  # it has begun
    admitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await admitting
    await service.aclose()
    assert await left(service, caller) == {"concurrent_replies": 1, "tokens_per_minute": 100}


async def test_running_replies_are_prolonged_and_those_of_a_killed_worker_are_not(
    service: LimitService, counters: LimitCounters, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    prolonged = asyncio.Event()
    loop = asyncio.get_running_loop()
    prolong = counters.prolong_replies

    def tell(ids: tuple[str, ...], seconds: float) -> None:
        prolong(ids, seconds)
        loop.call_soon_threadsafe(prolonged.set)

    monkeypatch.setattr(module, "PROLONG_SECONDS", 0.0)
    monkeypatch.setattr(counters, "prolong_replies", tell)
    caller = limited(concurrent_replies=2)
    assert counters.begin_replies(caller.owner, ["of a killed worker"], 2, module.RUNNING_SECONDS)
    (permit,) = await service.admit(caller, [None])
    clock.now += module.RUNNING_SECONDS - 1
    for _ in range(2):  # the first may have looked at the clock before
        prolonged.clear()
        await prolonged.wait()
    clock.now += 1
    assert await left(service, caller) == {"concurrent_replies": 1}
    await permit.settle(0)


# --- where counts are ---


class Unreachable(LimitCounters):
    """As a Redis that does not answer."""

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise UnreachableError(ConnectionError("refused"))


async def test_shared_counts_that_do_not_answer_are_one_clear_error(counters: LimitCounters) -> None:
    windows: Storage = Unreachable(None)
    service = LimitService(Limits(), counters, windows)
    with pytest.raises(StorageError, match="limits_url"):
        await service.admit(limited(requests_per_day=1), [None])
    assert await service.admit(LOCAL, [None]) == (UNLIMITED,)
    windows.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("url", ["", "memory://", "http://localhost", "redis:/x", "memcached://localhost:1"])
def test_an_address_that_is_not_one_of_redis_is_refused_by_name(url: str) -> None:
    with pytest.raises(InvalidRequest, match="limits_url") as caught:
        redis_windows(url)
    assert caught.value.param == "limits_url"


def test_there_is_one_way_to_a_reply() -> None:
    root = Path(str(mini_claude.__path__[0]))
    found = [
        path.relative_to(root).as_posix()
        for layer in ("services", "web", "terminal")
        for path in sorted((root / layer).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("runtime.start")
    ]
    assert found == ["services/replies.py"]


def test_counts_are_in_a_file_exactly_where_sessions_are(settings: Settings, worker: Worker) -> None:
    assert (settings.data_dir / "limits.db").is_file()
