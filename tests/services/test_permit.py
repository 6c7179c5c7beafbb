"""Replies within limits: a place is given back and tokens are charged, however a reply ends."""

import asyncio

import pytest

from mini_claude.errors import EngineDied, Overloaded, RateLimited
from mini_claude.services.identity import Caller
from mini_claude.types import Message, SamplingParams

from .conftest import OpenWorker, Worker, left, limited, says, texts
from .fakes import FakeEngine

HELLO = (Message("user", "a b"),)
ANSWERED = 5  # tokens of HELLO and its echo
PARAMS = SamplingParams(max_tokens=10)


async def reply(worker: Worker, caller: Caller) -> list[str]:
    stream = await worker.chat.reply(caller, None, HELLO, PARAMS)
    try:
        return await texts(stream)
    finally:
        await stream.aclose()


async def test_a_reply_gives_its_place_back_at_its_end_before_the_end_is_shown(worker: Worker) -> None:
    caller = limited(concurrent_replies=1, tokens_per_minute=100)
    stream = await worker.chat.reply(caller, None, HELLO, PARAMS)
    with pytest.raises(RateLimited):
        await worker.chat.reply(caller, None, HELLO, PARAMS)
    async for event in stream:
        if event.delta.finish_reason is not None:
            assert (await left(worker.services.limits, caller))["concurrent_replies"] == 1
    await stream.aclose()
    assert await left(worker.services.limits, caller) == {"tokens_per_minute": 100 - ANSWERED, "concurrent_replies": 1}


async def test_a_reply_that_is_left_aborted_or_fails_gives_its_place_back(worker: Worker, engine: FakeEngine) -> None:
    caller = limited(concurrent_replies=1)
    engine.gate.clear()
    stream = await worker.chat.complete(caller, None, "a b", PARAMS)
    await anext(aiter(stream))
    await stream.aclose()
    aborted = await worker.chat.reply(caller, None, HELLO, PARAMS)
    aborted.abort()
    assert (await texts(aborted))[-1] == ""
    await aborted.aclose()
    engine.failure = (0, EngineDied("gone"))
    failed = await worker.chat.reply(caller, None, HELLO, PARAMS)
    with pytest.raises(EngineDied):
        await texts(failed)
    assert await left(worker.services.limits, caller) == {"concurrent_replies": 1}
    await failed.aclose()


async def test_a_reply_whose_reader_is_cancelled_gives_its_place_back(worker: Worker, engine: FakeEngine) -> None:
    caller = limited(concurrent_replies=1)
    engine.gate.clear()
    begun = asyncio.Event()

    async def read() -> None:
        stream = await worker.chat.reply(caller, None, HELLO, PARAMS)
        try:
            async for _ in stream:
                begun.set()
        finally:
            await stream.aclose()

    reading = asyncio.create_task(read())
    await begun.wait()
    assert await left(worker.services.limits, caller) == {"concurrent_replies": 0}
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await left(worker.services.limits, caller) == {"concurrent_replies": 1}


async def test_what_the_engine_refuses_takes_no_tokens_and_no_place(worker: Worker, engine: FakeEngine) -> None:
    caller = limited(requests_per_minute=9, tokens_per_minute=100, concurrent_replies=1)
    engine.refusal = Overloaded("full", retry_after=1.0)
    with pytest.raises(Overloaded):
        await worker.chat.reply(caller, None, HELLO, PARAMS)
    state = await left(worker.services.limits, caller)
    assert state == {"requests_per_minute": 8, "tokens_per_minute": 100, "concurrent_replies": 1}


async def test_a_sessions_reply_counts_until_it_ends_though_nobody_listens(worker: Worker, engine: FakeEngine) -> None:
    caller = limited(concurrent_replies=1, tokens_per_minute=1000)
    engine.gate.clear()
    said = await worker.chat.say(caller, says("a b", resumable=True))
    await said.aclose()
    assert (await left(worker.services.limits, caller))["concurrent_replies"] == 0
    running = worker.chat._running[said.reply_id]
    await engine.open_gate()
    await running.task
    assert await left(worker.services.limits, caller) == {"concurrent_replies": 1, "tokens_per_minute": 1000 - ANSWERED}


async def test_a_refused_turn_is_not_stored_and_nothing_is_loaded(worker: Worker) -> None:
    caller = limited(requests_per_day=1)
    await texts(await worker.chat.say(caller, says("a b")))
    worker.runtime.models.clear()
    num_started = len(worker.runtime.started)
    with pytest.raises(RateLimited):
        await worker.chat.say(caller, says("a b"))
    with pytest.raises(RateLimited):
        await worker.services.xray.of_messages(caller, None, HELLO, PARAMS)
    assert len(await worker.chat.list(caller, 10)) == 1
    assert len(worker.runtime.started) == num_started
    assert worker.runtime.models == {}


async def test_workers_of_one_data_directory_share_counts(open_worker: OpenWorker, engine: FakeEngine) -> None:
    one, two = await open_worker(), await open_worker()
    caller = limited(requests_per_minute=3, concurrent_replies=1)
    engine.gate.clear()
    stream = await one.chat.reply(caller, None, HELLO, PARAMS)
    with pytest.raises(RateLimited, match="at once"):
        await two.chat.reply(caller, None, HELLO, PARAMS)
    await stream.aclose()
    await engine.open_gate()
    await reply(two, caller)
    await reply(one, caller)
    for worker in (one, two):
        with pytest.raises(RateLimited, match="3 requests a minute"):
            await reply(worker, caller)
