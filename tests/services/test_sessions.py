"""Histories: how turns are stored, branch, and become the context of the next reply."""

import asyncio
import time

import pytest

from mini_claude.errors import Conflict, ContextLengthExceeded, EngineDied, InvalidRequest, NotFound, Overloaded
from mini_claude.services.identity import LOCAL

from .conftest import ALICE, BOB, OpenWorker, Worker, says, talk, texts
from .fakes import FakeEngine


async def test_a_new_session_stores_both_turns_and_the_next_turn_sees_them(worker: Worker) -> None:
    first = await talk(worker, "hi there", system="Be brief.")
    await talk(worker, "and now?", first.session_id)
    assert worker.runtime.sent() == [
        ("system", "Be brief."),
        ("user", "hi there"),
        ("assistant", "echo: hi there "),
        ("user", "and now?"),
    ]
    stored = await worker.chat.get(LOCAL, first.session_id)
    assert [(turn.role, turn.status) for turn in stored.turns] == [("user", "done"), ("assistant", "done")] * 2
    answer = stored.turns[1]
    assert (answer.id, answer.parent_id) == (first.reply_id, first.user_turn_id)
    assert (answer.content, answer.finish_reason, answer.model) == ("echo: hi there ", "stop", "smollm2-135m")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens) == (2, 3, 1)


async def test_whoever_saw_the_last_event_finds_the_turn_stored_and_the_head_moved(worker: Worker) -> None:
    reply = await worker.chat.say(LOCAL, says("one two three"))
    async for event in reply:
        stored = await worker.chat.get(LOCAL, reply.session_id)
        ended = event.delta.finish_reason is not None
        if ended:
            assert stored.turns[1].status == "done"
            assert stored.session.head_turn_id == reply.reply_id
    assert ended


async def test_the_pace_of_a_reply_is_that_of_its_events_however_late_they_are_read(worker: Worker) -> None:
    asked_at = time.perf_counter()
    reply = await worker.chat.say(ALICE, says("hello"))
    assert reply._running is not None
    await reply._running.task
    ended_at = time.perf_counter()
    await texts(reply)
    assert reply.pace is not None
    assert asked_at <= reply.pace.first_at <= reply.pace.last_at <= ended_at


async def test_editing_a_user_turn_branches_and_keeps_the_old_branch(worker: Worker) -> None:
    first = await talk(worker, "first")
    second = await talk(worker, "second", first.session_id)
    edited = await talk(worker, "second, edited", first.session_id, parent_id=first.reply_id)
    assert ("user", "second") not in worker.runtime.sent()
    assert worker.runtime.sent()[-1] == ("user", "second, edited")
    stored = await worker.chat.get(LOCAL, first.session_id)
    assert len(stored.turns) == 6
    assert stored.session.head_turn_id == edited.reply_id
    await worker.chat.select(LOCAL, first.session_id, second.reply_id)
    await talk(worker, "third", first.session_id)
    assert [content for _, content in worker.runtime.sent()] == [
        "first",
        "echo: first ",
        "second",
        "echo: second ",
        "third",
    ]


async def test_editing_the_first_turn_starts_again_at_the_root(worker: Worker) -> None:
    first = await talk(worker, "first")
    await talk(worker, "instead", first.session_id, parent_id="")
    assert worker.runtime.sent() == [("user", "instead")]
    stored = await worker.chat.get(LOCAL, first.session_id)
    assert [turn.parent_id for turn in stored.turns if turn.role == "user"] == [None, None]


async def test_regenerating_makes_a_second_answer_to_the_same_turn(worker: Worker) -> None:
    first = await talk(worker, "question")
    again = await talk(worker, None, first.session_id, parent_id=first.user_turn_id)
    assert again.user_turn_id == first.user_turn_id
    assert again.reply_id != first.reply_id
    assert worker.runtime.sent() == [("user", "question")]
    stored = await worker.chat.get(LOCAL, first.session_id)
    assert [turn.parent_id for turn in stored.turns] == [None, first.user_turn_id, first.user_turn_id]
    assert stored.session.head_turn_id == again.reply_id


async def test_a_given_model_and_system_prompt_become_the_sessions(worker: Worker) -> None:
    first = await talk(worker, "hi", model="dialogpt-small", system="Be kind.")
    await talk(worker, "again", first.session_id)
    assert worker.runtime.started[-1][0].name == "dialogpt-small"
    assert worker.runtime.sent()[0] == ("system", "Be kind.")
    await talk(worker, "more", first.session_id, model="default", system="")
    assert worker.runtime.started[-1][0].name == "smollm2-135m"
    assert worker.runtime.sent()[0] == ("user", "hi")
    session = (await worker.chat.get(LOCAL, first.session_id)).session
    assert (session.model, session.system) == ("smollm2-135m", "")


@pytest.mark.parametrize("refusal", [ContextLengthExceeded("3 > 2"), Overloaded("full")])
async def test_what_the_engine_refuses_leaves_no_turn_and_no_session(
    worker: Worker, engine: FakeEngine, refusal: Overloaded
) -> None:
    first = await talk(worker, "hi")
    engine.refusal = refusal
    for session_id in (None, first.session_id):
        with pytest.raises(type(refusal)):
            await worker.chat.say(LOCAL, says("more", session_id))
    assert len(await worker.chat.list(LOCAL, 10)) == 1
    assert len((await worker.chat.get(LOCAL, first.session_id)).turns) == 2


async def test_turns_that_did_not_fit_are_named(worker: Worker, engine: FakeEngine) -> None:
    first = await talk(worker, "first", system="System prompts are not counted.")
    engine.dropped_messages = 2
    second = await worker.chat.say(LOCAL, says("second", first.session_id))
    assert second.dropped_turn_ids == (first.user_turn_id, first.reply_id)
    await texts(second)
    stored = await worker.chat.get(LOCAL, first.session_id)
    assert stored.turns[-1].dropped_turn_ids == second.dropped_turn_ids


async def test_an_engine_that_dies_in_mid_reply_leaves_the_partial_text(worker: Worker, engine: FakeEngine) -> None:
    engine.failure = (2, EngineDied("gone", retry_after=5.0))
    reply = await worker.chat.say(LOCAL, says("one two three"))
    with pytest.raises(EngineDied):
        await texts(reply)
    answer = (await worker.chat.get(LOCAL, reply.session_id)).turns[1]
    assert (answer.content, answer.status, answer.finish_reason) == ("echo: one ", "failed", "error")
    assert answer.error is not None
    assert (answer.error[0], answer.error[1].retry_after) == ("EngineDied", 5.0)


async def test_a_reply_that_failed_before_its_first_word_is_in_no_later_context(
    worker: Worker, engine: FakeEngine
) -> None:
    first = await talk(worker, "first")
    engine.failure = (0, EngineDied("gone"))
    failed = await worker.chat.say(LOCAL, says("lost", first.session_id))
    with pytest.raises(EngineDied):
        await texts(failed)
    engine.failure = None
    with pytest.raises(Conflict):
        await worker.chat.say(LOCAL, says("more", first.session_id, parent_id=failed.reply_id))
    await talk(worker, "second", first.session_id)
    assert [content for _, content in worker.runtime.sent()] == ["first", "echo: first ", "second"]
    again = await talk(worker, None, first.session_id, parent_id=failed.user_turn_id)
    assert again.user_turn_id == failed.user_turn_id


async def test_a_parent_must_be_a_finished_reply_of_the_same_session(worker: Worker, engine: FakeEngine) -> None:
    first = await talk(worker, "first")
    other = await talk(worker, "other")
    with pytest.raises(NotFound):
        await worker.chat.say(LOCAL, says("x", first.session_id, parent_id=other.reply_id))
    with pytest.raises(InvalidRequest):
        await worker.chat.say(LOCAL, says("x", first.session_id, parent_id=first.user_turn_id))
    with pytest.raises(InvalidRequest):
        await worker.chat.say(LOCAL, says(None, first.session_id, parent_id=first.reply_id))
    with pytest.raises(InvalidRequest):
        await worker.chat.select(LOCAL, first.session_id, first.user_turn_id)
    engine.gate.clear()
    running = await worker.chat.say(LOCAL, says("more", first.session_id))
    for call in (
        worker.chat.say(LOCAL, says("x", first.session_id, parent_id=running.reply_id)),
        worker.chat.select(LOCAL, first.session_id, running.reply_id),
    ):
        with pytest.raises(Conflict):
            await call
    await running.aclose()


@pytest.mark.parametrize(
    "turn",
    [
        says(" \n"),
        says(None),
        says(None, "x" * 32),
        says("x", parent_id="y" * 32),
        says("half a pair: \ud800"),
        says("x", system="\udfff"),
        says("x", "\ud800"),
        says("a\0b"),
        says("x", system="a\0b"),
    ],
)
async def test_turns_that_cannot_be_answered_are_refused(worker: Worker, turn: object) -> None:
    with pytest.raises(InvalidRequest):
        await worker.chat.say(LOCAL, turn)  # type: ignore[arg-type]
    assert worker.runtime.started == []


async def test_another_owners_session_and_reply_do_not_exist(worker: Worker, engine: FakeEngine) -> None:
    engine.gate.clear()
    reply = await worker.chat.say(ALICE, says("secret"))
    session_id = reply.session_id
    for attempt in (
        worker.chat.get(BOB, session_id),
        worker.chat.rename(BOB, session_id, "mine"),
        worker.chat.delete(BOB, session_id),
        worker.chat.select(BOB, session_id, reply.reply_id),
        worker.chat.say(BOB, says("hello", session_id)),
        worker.chat.resume(BOB, reply.reply_id, 0),
        worker.chat.stop(BOB, reply.reply_id),
        worker.chat.list(BOB, 10, session_id),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert not await worker.chat.list(BOB, 10)
    assert not engine.replies[reply.reply_id].aborted
    assert len((await worker.chat.get(ALICE, session_id)).turns) == 2
    await reply.aclose()


async def test_titles_are_the_first_words_on_one_line(worker: Worker) -> None:
    reply = await talk(worker, "  What\nis\t the " + "very " * 30)
    title = (await worker.chat.get(LOCAL, reply.session_id)).session.title
    assert title.startswith("What is the very very")
    assert 55 <= len(title) <= 60
    await talk(worker, "something else", reply.session_id)
    assert (await worker.chat.get(LOCAL, reply.session_id)).session.title == title
    renamed = await worker.chat.rename(LOCAL, reply.session_id, " New\nname ")
    assert renamed.title == "New name"
    with pytest.raises(InvalidRequest):
        await worker.chat.rename(LOCAL, reply.session_id, " \n ")


async def test_listing_pages_from_the_most_recently_used(worker: Worker) -> None:
    replies = [await talk(worker, f"session {number}") for number in range(5)]
    await talk(worker, "again", replies[0].session_id)
    page = await worker.chat.list(LOCAL, 2)
    assert [session.title for session in page] == ["session 0", "session 4"]
    rest = await worker.chat.list(LOCAL, 10, page[-1].id)
    assert [session.title for session in rest] == ["session 3", "session 2", "session 1"]


async def test_deleting_a_session_removes_it_and_stops_its_reply(worker: Worker, engine: FakeEngine) -> None:
    first = await talk(worker, "first")
    engine.gate.clear()
    running = await worker.chat.say(LOCAL, says("second", first.session_id, resumable=True))
    await worker.chat.delete(LOCAL, first.session_id)
    assert (await texts(running))[-1] == ""
    assert engine.replies[running.reply_id].aborted
    for attempt in (
        worker.chat.get(LOCAL, first.session_id),
        worker.chat.resume(LOCAL, running.reply_id, 0),
        worker.chat.delete(LOCAL, first.session_id),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_a_session_deleted_while_its_reply_is_being_accepted_stays_deleted(
    worker: Worker, engine: FakeEngine
) -> None:
    first = await talk(worker, "first")
    worker.runtime.start_gate.clear()
    worker.runtime.start_called.clear()
    saying = asyncio.create_task(worker.chat.say(LOCAL, says("second", first.session_id)))
    await worker.runtime.start_called.wait()
    await worker.chat.delete(LOCAL, first.session_id)
    worker.runtime.start_gate.set()
    with pytest.raises(NotFound):
        await saying
    assert list(engine.replies.values())[-1].aborted


async def test_fifty_turns_at_once_over_two_workers_are_all_kept(open_worker: OpenWorker) -> None:
    workers = [await open_worker(), await open_worker()]
    first = await talk(workers[0], "start")
    replies = await asyncio.gather(
        *(talk(workers[number % 2], f"turn {number}", first.session_id) for number in range(50))
    )
    stored = await workers[0].chat.get(LOCAL, first.session_id)
    by_id = {turn.id: turn for turn in stored.turns}
    assert len(by_id) == 102
    assert {by_id[reply.reply_id].content for reply in replies} == {f"echo: turn {n} " for n in range(50)}
    assert all(by_id[reply.user_turn_id].parent_id in by_id for reply in replies)
    assert stored.session.head_turn_id in {reply.reply_id for reply in replies}
