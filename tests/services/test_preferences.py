"""Preferences by the rules: what can be learned from, and whose it is."""

from dataclasses import replace

import pytest

from mini_claude.data.records import Answer
from mini_claude.errors import Conflict, InvalidRequest, NotFound
from mini_claude.services import feedback
from mini_claude.services.feedback import FeedbackService
from mini_claude.services.identity import LOCAL
from mini_claude.services.preference_rules import MAX_CONTEXT, MAX_MESSAGES, MAX_TEXT
from mini_claude.types import Message

from .conftest import ALICE, BOB, Worker

MESSAGES = (Message("user", "hi"),)
GOOD = Answer("smollm2-135m:support-bot@2", "Hello!", cut=False)
BAD = Answer("smollm2-135m", "Hello, hello, hel", cut=True)


@pytest.fixture
def service(worker: Worker) -> FeedbackService:
    return worker.services.feedback


async def test_a_preference_is_kept_until_it_is_removed(service: FeedbackService) -> None:
    one = await service.prefer(ALICE, messages=MESSAGES, chosen=GOOD, rejected=BAD, blind=True)
    two = await service.prefer(ALICE, messages=MESSAGES, chosen=BAD, rejected=GOOD, blind=False)
    assert (one.messages, one.chosen, one.rejected, one.blind) == (MESSAGES, GOOD, BAD, True)
    assert await service.preferences(ALICE, 10) == (two, one)
    assert await service.preferences(ALICE, 10, before=two.id) == (one,)
    for call in (service.remove_preference(BOB, one.id), service.preferences(BOB, 10, before=one.id)):
        with pytest.raises(NotFound):
            await call
    assert await service.preferences(BOB, 10) == ()
    await service.remove_preference(ALICE, one.id)
    assert await service.preferences(ALICE, 10) == (two,)


@pytest.mark.parametrize(
    ("param", "chosen", "rejected"),
    [
        ("chosen.text", replace(GOOD, text=" "), BAD),
        ("chosen.text", replace(GOOD, text="x" * (MAX_TEXT + 1)), BAD),
        ("chosen.text", replace(GOOD, text="\ud83d"), BAD),
        ("rejected.text", GOOD, replace(BAD, text="\0")),
        ("rejected.text", GOOD, replace(BAD, text=GOOD.text)),
        ("chosen.model", replace(GOOD, model="smollm2-135m:support-bot"), BAD),
        ("chosen.model", replace(GOOD, model="smollm2-135m:support-bot@0"), BAD),
        ("chosen.model", replace(GOOD, model="../../etc"), BAD),
        ("rejected.model", GOOD, replace(BAD, model="default")),
        ("rejected.model", GOOD, replace(BAD, model="")),
    ],
)
async def test_answers_that_cannot_be_learned_from_are_refused_by_name(
    service: FeedbackService, param: str, chosen: Answer, rejected: Answer
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await service.prefer(LOCAL, messages=MESSAGES, chosen=chosen, rejected=rejected, blind=False)
    assert caught.value.param == param
    assert param in caught.value.message
    assert await service.preferences(LOCAL, 10) == ()


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (Message("system", "Be brief."),),
        (Message("assistant", "hi"),),
        (Message("user", "hi"), Message("assistant", "yes")),
        (Message("user", "hi"), Message("user", "again")),
        (Message("user", " "),),
        (Message("user", "\ud83d"),),
        (Message("user", "x" * (MAX_CONTEXT + 1)),),
        (*(Message("user", "a"), Message("assistant", "b")) * (MAX_MESSAGES // 2), Message("user", "c")),
    ],
)
async def test_messages_have_to_be_a_conversation_that_waits_for_an_answer(
    service: FeedbackService, messages: tuple[Message, ...]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await service.prefer(LOCAL, messages=messages, chosen=GOOD, rejected=BAD, blind=False)
    assert caught.value.param == "messages"
    assert "messages" in caught.value.message


async def test_the_longest_of_all_is_stored(service: FeedbackService) -> None:
    turns = (Message("user", "x" * 100), Message("assistant", "y" * 100))
    messages = (Message("system", "s" * (MAX_CONTEXT - 25_500)), *turns * 127, Message("user", "z" * 100))
    assert len(messages) == MAX_MESSAGES
    assert sum(len(message.content) for message in messages) == MAX_CONTEXT
    chosen, rejected = replace(GOOD, text="a" * MAX_TEXT), replace(BAD, text="b" * MAX_TEXT)
    stored = await service.prefer(LOCAL, messages=messages, chosen=chosen, rejected=rejected, blind=False)
    assert await service.preferences(LOCAL, 1) == (stored,)


async def test_one_owner_cannot_fill_the_disk(service: FeedbackService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MAX_PREFERENCES", 1)
    await service.prefer(LOCAL, messages=MESSAGES, chosen=GOOD, rejected=BAD, blind=False)
    with pytest.raises(Conflict):
        await service.prefer(LOCAL, messages=MESSAGES, chosen=GOOD, rejected=BAD, blind=False)
