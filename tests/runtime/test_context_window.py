"""Which turns give way when a conversation is too long."""

import pytest

from mini_claude.errors import ContextLengthExceeded
from mini_claude.models.echo_model import EchoModel
from mini_claude.runtime.context_window import fit
from mini_claude.types import Message

MODEL = EchoModel(context_length=100)
SYSTEM = Message("system", "s" * 8)  # 10 tokens
TURN = (Message("user", "u" * 13), Message("assistant", "a" * 13))  # 30 tokens
LAST = Message("user", "l" * 13)  # 15, and one for the assistant's header


def text(token_ids: tuple[int, ...]) -> str:
    return MODEL.codec.decode(token_ids)


def test_a_conversation_that_fits_is_kept_whole() -> None:
    token_ids, dropped = fit(MODEL, [SYSTEM, *TURN, LAST], 20, drop_oldest=True)
    assert dropped == 0
    assert token_ids == MODEL.render([SYSTEM, *TURN, LAST]).token_ids


def test_whole_oldest_turns_go_first_and_no_more_than_needed() -> None:
    token_ids, dropped = fit(MODEL, [SYSTEM, *TURN, *TURN, *TURN, LAST], 20, drop_oldest=True)
    assert dropped == 4
    assert token_ids == MODEL.render([SYSTEM, *TURN, LAST]).token_ids


def test_room_for_the_reply_is_kept_when_no_length_is_given() -> None:
    token_ids, dropped = fit(MODEL, [SYSTEM, *TURN, LAST], None, drop_oldest=True)
    assert dropped == 2
    assert len(token_ids) <= 50


def test_a_plain_request_is_never_cut() -> None:
    messages = [SYSTEM, *TURN, *TURN, *TURN, LAST]
    assert fit(MODEL, messages, 20, drop_oldest=False) == (MODEL.render(messages).token_ids, 0)


def test_a_last_message_that_is_too_long_is_refused_with_the_numbers() -> None:
    with pytest.raises(ContextLengthExceeded, match=r"100 tokens") as caught:
        fit(MODEL, [SYSTEM, *TURN, Message("user", "x" * 200)], 20, drop_oldest=True)
    assert "213 tokens" in caught.value.message


def test_an_orphaned_answer_goes_with_the_turn_before_it() -> None:
    messages = [Message("assistant", "greeting" * 5), *TURN, *TURN, LAST]
    token_ids, dropped = fit(MODEL, messages, 20, drop_oldest=True)
    assert text(token_ids).startswith("u")
    assert dropped == 1
