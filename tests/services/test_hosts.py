"""Two hosts: data directories with engines of their own, over one PostgreSQL and one Redis, both real."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mini_claude.errors import Conflict, InvalidRequest, RateLimited, StorageError, Unavailable
from mini_claude.services import other_hosts
from mini_claude.services.identity import LOCAL
from mini_claude.services.limits import redis_windows
from mini_claude.services.permit import UNLIMITED
from mini_claude.services.services import open_services
from mini_claude.utils.config import Settings

from ..redis_server import Redis
from .conftest import Worker, left, limited, says, talk, texts
from .fakes import FakeEngine, FakeRuntime

OpenHost = Callable[[str], Awaitable["Host"]]


@dataclass
class Host(Worker):
    """A worker on its own host."""

    engine: FakeEngine


@pytest.fixture
async def open_host(tmp_path: Path, postgresql_url: str, redis: Redis) -> AsyncIterator[OpenHost]:
    async with AsyncExitStack() as stack:

        async def open_one(name: str) -> Host:
            settings = Settings(
                data_dir=tmp_path / name, engine="echo", database_url=postgresql_url, limits_url=redis.url
            )
            engine = FakeEngine()
            runtime = FakeRuntime(engine)
            services = await open_services(settings, runtime)
            stack.push_async_callback(services.aclose)
            return Host(services, runtime, engine)

        yield open_one


async def test_a_conversation_goes_on_on_whatever_host(open_host: OpenHost) -> None:
    one, two = await open_host("one"), await open_host("two")
    first = await talk(one, "hi there")
    await talk(two, "and now?", first.session_id)
    assert [content for _, content in two.runtime.sent()] == ["hi there", "echo: hi there ", "and now?"]
    assert len((await one.chat.get(LOCAL, first.session_id)).turns) == 4


async def test_a_reply_is_told_by_another_host_when_it_has_ended_and_left_alone_until_then(open_host: OpenHost) -> None:
    one, same, two = await open_host("one"), await open_host("one"), await open_host("two")
    one.engine.gate.clear()
    reply = await one.chat.say(LOCAL, says("one two three", resumable=True))
    (turn,) = (await same.chat.get(LOCAL, reply.session_id)).turns[1:]
    assert turn.host is not None
    with pytest.raises(Conflict, match="stop it there"):
        await two.chat.stop(LOCAL, reply.reply_id)
    resuming = asyncio.create_task(two.chat.resume(LOCAL, reply.reply_id, 0))
    assert (await two.chat.get(LOCAL, reply.session_id)).turns[1].status == "running"
    assert not resuming.done()
    await one.engine.open_gate()
    assert "".join(await texts(await resuming)) == "echo: one two three "
    stored = (await two.chat.get(LOCAL, reply.session_id)).turns[1]
    assert (stored.status, stored.content, stored.host) == ("done", "echo: one two three ", turn.host)


async def test_a_reply_of_a_host_that_is_gone_is_not_waited_for_for_ever(
    open_host: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await open_host("one"), await open_host("two")
    one.engine.gate.clear()
    reply = await one.chat.say(LOCAL, says("one two three", resumable=True))
    monkeypatch.setattr(other_hosts, "WAIT_SECONDS", 0.0)
    with pytest.raises(Unavailable, match="Another host"):
        await two.chat.resume(LOCAL, reply.reply_id, 0)
    assert (await one.chat.get(LOCAL, reply.session_id)).turns[1].status == "running"


async def test_a_keys_limits_hold_over_all_hosts(open_host: OpenHost) -> None:
    one, two = (await open_host("one")).services.limits, (await open_host("two")).services.limits
    caller = limited(requests_per_minute=3, tokens_per_day=1000)
    for limits, taken in ((one, 100), (two, 300), (one, 200)):
        (permit,) = await limits.admit(caller, [400])
        await permit.settle(taken)
    for limits in (one, two):
        assert await left(limits, caller) == {"requests_per_minute": 0, "tokens_per_day": 400}
        with pytest.raises(RateLimited, match="3 requests a minute") as caught:
            await limits.admit(caller, [400])
        assert 50 < (caught.value.retry_after or 0) <= 60
    other = limited("d", requests_per_minute=3)
    assert len(await two.admit(other, [None])) == 1


async def test_fifty_at_once_on_two_hosts_are_let_in_as_often_as_the_limit_says(open_host: OpenHost) -> None:
    hosts = [await open_host("one"), await open_host("two")]
    caller = limited(requests_per_minute=10)
    admitted = await asyncio.gather(
        *(hosts[number % 2].services.limits.admit(caller, [None]) for number in range(50)), return_exceptions=True
    )
    assert sum(isinstance(each, tuple) for each in admitted) == 10
    assert sum(isinstance(each, RateLimited) for each in admitted) == 40


async def test_without_redis_whoever_has_limits_waits_and_nobody_else(open_host: OpenHost, redis: Redis) -> None:
    host = await open_host("one")
    limits, caller = host.services.limits, limited(requests_per_minute=3, tokens_per_day=1000, concurrent_replies=1)
    (permit,) = await limits.admit(caller, [400])
    redis.stop()
    await permit.settle(100)  # its reply is whole, whatever cannot be counted
    with pytest.raises(StorageError, match="limits_url"):
        await limits.admit(caller, [400])
    with pytest.raises(StorageError, match="limits_url"):
        await limits.states(caller)
    assert await limits.admit(LOCAL, [None]) == (UNLIMITED,)
    assert (await talk(host, "hi there")).reply_id
    redis.start()
    (permit,) = await limits.admit(caller, [400])  # no place was kept by those that were refused
    await permit.settle(100)
    assert await left(limits, caller) == {"requests_per_minute": 2, "tokens_per_day": 900, "concurrent_replies": 1}


def test_a_missing_driver_of_redis_is_told_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InvalidRequest, match=r"mini-claude\[redis\]"):
        redis_windows("redis://localhost")
