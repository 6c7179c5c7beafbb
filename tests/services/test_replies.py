"""Replies that outlive their listeners and workers: stopping, leaving, resuming, storing once."""

import asyncio
from collections.abc import AsyncIterable

import pytest

from mini_claude.errors import EngineDied, InvalidRequest, NotFound
from mini_claude.runtime.messages import ReplyEvent
from mini_claude.services.identity import LOCAL
from mini_claude.types import Message, SamplingParams

from ..data.slow_disk import slow_disk
from .conftest import OpenWorker, Worker, says, talk, texts
from .fakes import FakeEngine

PARAMS = SamplingParams()


async def numbered(reply: AsyncIterable[ReplyEvent]) -> list[tuple[int, str, str | None]]:
    return [(event.number, event.delta.text, event.delta.finish_reason) async for event in reply]


async def test_a_finished_reply_is_replayed_with_the_numbers_it_had_live(open_worker: OpenWorker) -> None:
    one, two = await open_worker(), await open_worker()
    reply = await one.chat.say(LOCAL, says("zwölf Boxkämpfer 🥊 jagen"))
    live = await numbered(reply)
    one.runtime.engine.forget_everything()
    for after in range(len(live) + 1):
        replay = await two.chat.resume(LOCAL, reply.reply_id, after)
        assert await numbered(replay) == live[after:]
        assert (replay.session_id, replay.user_turn_id) == (reply.session_id, reply.user_turn_id)
    events = [event async for event in await two.chat.resume(LOCAL, reply.reply_id, 0)]
    assert events[-1].delta.usage is not None
    assert events[-1].delta.usage.completion_tokens == 5


@pytest.mark.parametrize("same_worker", [True, False])
async def test_a_running_reply_is_resumed_and_followed_live(
    open_worker: OpenWorker, engine: FakeEngine, same_worker: bool
) -> None:
    one, two = await open_worker(), await open_worker()
    engine.gate.clear()
    engine.gate_at = 3
    reply = await one.chat.say(LOCAL, says("a b c d", resumable=True))
    seen = [await anext(reply), await anext(reply)]
    await reply.aclose()  # the browser reloads
    again = await (one if same_worker else two).chat.resume(LOCAL, reply.reply_id, seen[-1].number)
    assert (await anext(again)).number == 3
    await engine.open_gate()
    rest = await numbered(again)
    assert [text for _, text, _ in rest] == ["c ", "d ", ""]
    assert rest[-1] == (6, "", "stop")
    stored = await two.chat.get(LOCAL, reply.session_id)
    assert [turn.content for turn in stored.turns] == ["a b c d", "echo: a b c d "]
    assert [turn.status for turn in stored.turns] == ["done", "done"]


async def test_a_resumable_reply_goes_on_and_is_stored_with_nobody_listening(
    worker: Worker, engine: FakeEngine
) -> None:
    engine.gate.clear()
    reply = await worker.chat.say(LOCAL, says("a b", resumable=True))
    await anext(reply)
    await reply.aclose()
    await engine.open_gate()
    assert await texts(await worker.chat.resume(LOCAL, reply.reply_id, 1)) == ["a ", "b ", ""]
    assert worker.runtime.finished[0].finish_reason == "stop"


async def test_leaving_a_reply_that_cannot_be_resumed_aborts_it_and_stores_its_text(
    worker: Worker, engine: FakeEngine
) -> None:
    engine.gate.clear()
    engine.gate_at = 2
    reply = await worker.chat.say(LOCAL, says("a b c"))
    await anext(reply)
    await reply.aclose()
    stored = await worker.chat.get(LOCAL, reply.session_id)
    assert (stored.turns[1].content, stored.turns[1].finish_reason) == ("echo: a ", "abort")
    assert stored.session.head_turn_id == reply.reply_id
    assert engine.replies[reply.reply_id].aborted


async def test_the_worker_that_listens_stores_the_reply_when_the_one_that_started_it_is_killed(
    open_worker: OpenWorker, engine: FakeEngine
) -> None:
    one, two = await open_worker(), await open_worker()
    engine.gate.clear()
    reply = await one.chat.say(LOCAL, says("a b", resumable=True))
    again = await two.chat.resume(LOCAL, reply.reply_id, 1)
    one.chat._running[reply.reply_id].task.cancel()
    await engine.open_gate()
    assert await texts(again) == ["a ", "b ", ""]
    answer = (await two.chat.get(LOCAL, reply.session_id)).turns[1]
    assert (answer.status, answer.content) == ("done", "echo: a b ")


async def test_several_resumes_at_once_see_the_same_reply(open_worker: OpenWorker, engine: FakeEngine) -> None:
    one, two = await open_worker(), await open_worker()
    engine.gate.clear()
    reply = await one.chat.say(LOCAL, says("a b", resumable=True))
    listeners = await asyncio.gather(*(two.chat.resume(LOCAL, reply.reply_id, 0) for _ in range(5)))
    await engine.open_gate()
    heard = await asyncio.gather(*(texts(each) for each in (reply, *listeners)))
    assert heard == [["echo: ", "a ", "b ", ""]] * 6


async def test_a_crash_between_start_and_end_keeps_the_users_words_and_the_old_head(
    open_worker: OpenWorker, engine: FakeEngine
) -> None:
    one, two = await open_worker(), await open_worker()
    first = await talk(one, "first")
    engine.gate.clear()
    lost = await one.chat.say(LOCAL, says("second", first.session_id))
    before = await two.chat.get(LOCAL, first.session_id)
    assert [(turn.content, turn.status) for turn in before.turns[2:]] == [("second", "done"), ("", "running")]
    assert before.session.head_turn_id == first.reply_id
    one.chat._running[lost.reply_id].task.cancel()
    engine.forget_everything()
    for _ in range(2):  # found out, then read from the database
        with pytest.raises(EngineDied):
            await texts(await two.chat.resume(LOCAL, lost.reply_id, 0))
    after = await two.chat.get(LOCAL, first.session_id)
    assert (after.turns[3].status, after.turns[3].finish_reason) == ("failed", "error")
    assert after.session.head_turn_id == first.reply_id


@pytest.mark.parametrize("resumable", [True, False])
async def test_stop_works_from_another_worker(open_worker: OpenWorker, engine: FakeEngine, resumable: bool) -> None:
    one, two = await open_worker(), await open_worker()
    engine.gate.clear()
    reply = await one.chat.say(LOCAL, says("a b c", resumable=resumable))
    await two.chat.stop(LOCAL, reply.reply_id)
    events = await numbered(reply)
    assert events[-1][2] == "abort"
    stored = await two.chat.get(LOCAL, reply.session_id)
    assert (stored.turns[1].content, stored.turns[1].finish_reason) == ("echo: ", "abort")
    await two.chat.stop(LOCAL, reply.reply_id)  # has ended: nothing to do
    with pytest.raises(NotFound):
        await two.chat.stop(LOCAL, "no such reply")


async def test_a_reply_stopped_before_its_first_word_is_left_aside(worker: Worker, engine: FakeEngine) -> None:
    first = await talk(worker, "first")
    engine.gate.clear()
    engine.gate_at = 0
    reply = await worker.chat.say(LOCAL, says("never mind", first.session_id))
    await worker.chat.stop(LOCAL, reply.reply_id)
    await texts(reply)
    await engine.open_gate()
    await talk(worker, "second", first.session_id)
    assert [content for _, content in worker.runtime.sent()] == ["first", "echo: first ", "second"]


async def test_closing_the_service_stores_what_runs(open_worker: OpenWorker, engine: FakeEngine) -> None:
    one, two = await open_worker(), await open_worker()
    engine.gate.clear()
    reply = await one.chat.say(LOCAL, says("a b", resumable=True))
    await one.chat.aclose()
    answer = (await two.chat.get(LOCAL, reply.session_id)).turns[1]
    assert (answer.status, answer.content, answer.finish_reason) == ("done", "echo: ", "abort")


@pytest.mark.parametrize("resumable", [True, False])
async def test_a_caller_that_goes_while_its_reply_is_accepted_loses_no_turn(
    worker: Worker, engine: FakeEngine, resumable: bool
) -> None:
    worker.runtime.start_gate.clear()
    saying = asyncio.create_task(worker.chat.say(LOCAL, says("a b", resumable=resumable)))
    await worker.runtime.start_called.wait()
    saying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saying
    engine.gate.clear()
    worker.runtime.start_gate.set()
    async with asyncio.timeout(10):
        while not (sessions := await worker.chat.list(LOCAL, 1)):
            await asyncio.sleep(0.01)
        reply_id = (await worker.chat.get(LOCAL, sessions[0].id)).turns[1].id
        if resumable:
            await engine.open_gate()
        ending = await numbered(await worker.chat.resume(LOCAL, reply_id, 0))
    assert ending[-1][2] == ("stop" if resumable else "abort")


async def test_a_listener_that_never_reads_has_its_reply_aborted(worker: Worker, engine: FakeEngine) -> None:
    engine.answer = "word " * 2000
    engine.gate.clear()
    reply = await worker.chat.say(LOCAL, says("talk"))
    await engine.open_gate()
    await worker.chat._running[reply.reply_id].task
    events = await numbered(reply)
    assert events[-1][2] == "abort"
    assert 256 < len(events) < 300


async def test_what_came_while_the_disk_was_slow_does_not_count_against_the_listener(
    worker: Worker, engine: FakeEngine
) -> None:
    engine.answer = "word " * 600
    engine.gate.clear()
    engine.gate_at = 300
    with slow_disk(worker.services.database):
        saying = asyncio.create_task(worker.chat.say(LOCAL, says("talk")))
        await worker.runtime.start_called.wait()
        async with asyncio.timeout(10):
            while not worker.runtime.streams or worker.runtime.streams[0].num_read < 300:
                await asyncio.sleep(0)
    reply = await saying
    await engine.open_gate()
    async with asyncio.timeout(10):
        while worker.runtime.streams[0].num_read < 301:  # it goes on before the listener's first turn
            await asyncio.sleep(0)
    events = await numbered(reply)
    assert (len(events), events[-1][2]) == (601, "stop")


async def test_a_reply_that_is_being_accepted_when_the_worker_ends_is_not_left_running(
    worker: Worker, engine: FakeEngine
) -> None:
    engine.gate.clear()
    worker.runtime.start_gate.clear()
    saying = asyncio.create_task(worker.chat.say(LOCAL, says("talk")))
    await worker.runtime.start_called.wait()
    closing = asyncio.create_task(worker.chat.aclose())
    await asyncio.sleep(0)  # it has begun
    saying.cancel()
    worker.runtime.start_gate.set()
    async with asyncio.timeout(10):
        await closing
        while not (sessions := await worker.chat.list(LOCAL, 1)):
            await asyncio.sleep(0)
    turns = (await worker.chat.get(LOCAL, sessions[0].id)).turns
    assert [turn.status for turn in turns] == ["done", "done"]
    assert turns[1].finish_reason == "abort"


async def test_a_resumable_reply_waits_for_its_listener(worker: Worker, engine: FakeEngine) -> None:
    engine.answer = "word " * 600
    reply = await worker.chat.say(LOCAL, says("talk", resumable=True))
    await worker.chat._running[reply.reply_id].task
    events = await numbered(reply)
    assert (len(events), events[-1][2]) == (601, "stop")


async def test_a_stateless_reply_reports_its_times_and_tokens(worker: Worker) -> None:
    stream = await worker.chat.reply(LOCAL, None, [Message("user", "a b")], PARAMS)
    assert await texts(stream) == ["echo: ", "a ", "b ", ""]
    await stream.aclose()
    (fact,) = worker.runtime.finished
    assert (fact.model, fact.finish_reason) == ("smollm2-135m", "stop")
    assert (fact.prompt_tokens, fact.completion_tokens, fact.cached_tokens) == (2, 3, 1)
    assert fact.first_token_seconds is not None
    assert 0 < fact.first_token_seconds <= fact.seconds


async def test_a_stateless_reply_that_is_left_is_aborted_and_reported(worker: Worker, engine: FakeEngine) -> None:
    engine.gate.clear()
    stream = await worker.chat.complete(LOCAL, "default", "a b c", PARAMS)
    await anext(aiter(stream))
    await stream.aclose()
    (fact,) = worker.runtime.finished
    assert (fact.finish_reason, fact.completion_tokens) == ("abort", 1)
    assert next(iter(engine.replies.values())).aborted


async def test_a_failed_reply_is_reported_as_an_error_without_a_first_token(worker: Worker, engine: FakeEngine) -> None:
    engine.failure = (0, EngineDied("gone"))
    stream = await worker.chat.reply(LOCAL, None, [Message("user", "a")], PARAMS)
    with pytest.raises(EngineDied):
        await texts(stream)
    await stream.aclose()
    (fact,) = worker.runtime.finished
    assert (fact.finish_reason, fact.first_token_seconds) == ("error", None)


async def test_a_session_reply_is_reported_once_however_many_listen(
    open_worker: OpenWorker, engine: FakeEngine
) -> None:
    one, two = await open_worker(), await open_worker()
    engine.gate.clear()
    reply = await one.chat.say(LOCAL, says("a", resumable=True))
    again = await two.chat.resume(LOCAL, reply.reply_id, 0)
    await engine.open_gate()
    await asyncio.gather(texts(reply), texts(again))
    assert [fact.finish_reason for fact in (*one.runtime.finished, *two.runtime.finished)] == ["stop"]


async def test_unanswerable_stateless_requests_are_refused(worker: Worker) -> None:
    with pytest.raises(InvalidRequest):
        await worker.chat.reply(LOCAL, None, [], PARAMS)
    with pytest.raises(InvalidRequest):
        await worker.chat.reply(LOCAL, None, [Message("user", "\ud800")], PARAMS)
    with pytest.raises(InvalidRequest):
        await worker.chat.complete(LOCAL, None, "x", SamplingParams(stop=("\ud800",)))
    with pytest.raises(NotFound) as caught:
        await worker.chat.reply(LOCAL, "no-such-model", [Message("user", "hi")], PARAMS)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
