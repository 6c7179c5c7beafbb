"""Feedback by the rules: what can be said of which reply, and by whom."""

import pytest

from mini_claude.errors import Conflict, InvalidRequest, NotFound
from mini_claude.services.feedback import FeedbackService
from mini_claude.services.identity import LOCAL
from mini_claude.services.preference_rules import MAX_TEXT

from .conftest import ALICE, OpenWorker, Worker, says, talk, texts


@pytest.fixture
def service(worker: Worker) -> FeedbackService:
    return worker.services.feedback


async def test_a_reply_is_rated_corrected_and_left_alone_again(worker: Worker, service: FeedbackService) -> None:
    first = await talk(worker, "one")
    second = await talk(worker, "two", first.session_id)
    liked = await service.rate(LOCAL, first.reply_id, rating="up")
    fixed = await service.rate(LOCAL, second.reply_id, rating="down", correction="2")
    assert await service.of_session(LOCAL, first.session_id) == {first.reply_id: liked, second.reply_id: fixed}
    await service.rate(LOCAL, first.reply_id, rating=None)
    assert await service.of_session(LOCAL, first.session_id) == {second.reply_id: fixed}
    await worker.chat.delete(LOCAL, first.session_id)
    with pytest.raises(NotFound):
        await service.of_session(LOCAL, first.session_id)


async def test_the_bounds_of_a_correction(worker: Worker, service: FeedbackService) -> None:
    reply = await talk(worker, "one")
    for bad in ("", " \n", "x" * (MAX_TEXT + 1), "half \ud83d", "a\0b"):
        with pytest.raises(InvalidRequest) as caught:
            await service.rate(LOCAL, reply.reply_id, rating="down", correction=bad)
        assert caught.value.param == "correction"
    assert await service.of_session(LOCAL, reply.session_id) == {}
    longest = "é" * MAX_TEXT
    assert (await service.rate(LOCAL, reply.reply_id, rating=None, correction=longest)).correction == longest


async def test_feedback_is_its_owners_and_every_workers(open_worker: OpenWorker) -> None:
    one, two = await open_worker(), await open_worker()
    reply = await talk(one, "hi")
    given = await one.services.feedback.rate(LOCAL, reply.reply_id, rating="up")
    assert await two.services.feedback.of_session(LOCAL, reply.session_id) == {reply.reply_id: given}
    for call in (
        two.services.feedback.rate(ALICE, reply.reply_id, rating="down"),
        two.services.feedback.of_session(ALICE, reply.session_id),
        two.services.feedback.rate(LOCAL, reply.user_turn_id, rating="up"),
    ):
        with pytest.raises(NotFound):
            await call


async def test_a_reply_has_to_end_before_it_is_rated(worker: Worker, service: FeedbackService) -> None:
    worker.runtime.engine.gate.clear()
    reply = await worker.chat.say(LOCAL, says("one two"))
    with pytest.raises(Conflict):
        await service.rate(LOCAL, reply.reply_id, rating="up")
    await worker.runtime.engine.open_gate()
    await texts(reply)
    assert (await service.rate(LOCAL, reply.reply_id, rating="up")).rating == "up"
