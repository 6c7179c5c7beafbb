"""Which answers become rows of training data, and of what."""

from typing import Literal

from mini_claude.data.records import Answer, ChatSession, Conversation, Feedback, Preference, Turn
from mini_claude.services.feedback_rows import comparison_rows, correction_rows, rated_rows
from mini_claude.types import Message

SESSION = ChatSession("s", "local", "A title", None, "Be brief.", "a2", 0.0, 0.0)


def turn(name: str, parent: str | None, content: str, finish: str | None = None, dropped: tuple[str, ...] = ()) -> Turn:
    role: Literal["user", "assistant"] = "user" if finish is None else "assistant"
    return Turn(name, "s", parent, role, content, "done", 0.0, finish_reason=finish, dropped_turn_ids=dropped)


TURNS = (
    turn("u1", None, "Who?"),
    turn("a1", "u1", "Me.", "stop"),
    turn("u2", "a1", "Tell me all."),
    turn("a2", "u2", "It was", "abort"),
    turn("a3", "u2", "It was so.", "stop", dropped=("u1", "a1")),
)
WHOLE = Conversation(SESSION, TURNS)
SYSTEM = {"role": "system", "content": "Be brief."}


def said(reply: str, rating: str | None = None, correction: str | None = None) -> dict[str, Feedback]:
    return {reply: Feedback(reply, rating, correction, 0.0)}  # type: ignore[arg-type]


def test_what_was_said_before_is_read_and_not_learned_and_what_was_dropped_is_not_there() -> None:
    (first,) = rated_rows(WHOLE, said("a1", "up")).rows
    assert first["messages"] == [SYSTEM, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    (corrected,) = rated_rows(WHOLE, said("a2", correction="It was long ago.")).rows
    assert corrected["messages"][2] == {"role": "assistant", "content": "Me.", "weight": 0}
    assert corrected["messages"][-1] == {"role": "assistant", "content": "It was long ago."}
    (short,) = rated_rows(WHOLE, said("a3", "up")).rows
    assert [each["content"] for each in short["messages"]] == ["Be brief.", "Tell me all.", "It was so."]


def test_an_answer_that_was_stopped_is_left_out_and_counted() -> None:
    harvest = rated_rows(WHOLE, said("a2", "up"))
    assert (harvest.rows, harvest.num_left_out) == ([], 1)
    harvest = correction_rows(WHOLE, said("a2", "down", "It was long ago."))
    assert (harvest.rows, harvest.num_left_out) == ([], 1)


def test_a_correction_is_better_than_what_was_said_unless_both_are_good() -> None:
    (row,) = correction_rows(WHOLE, said("a1", "down", "I.")).rows
    assert row == {"prompt": [SYSTEM, {"role": "user", "content": "Who?"}], "chosen": "I.", "rejected": "Me."}
    assert len(correction_rows(WHOLE, said("a1", None, "I.")).rows) == 1
    for feedback in (said("a1", "up", "I."), said("a1", "down", "Me."), said("a1", "down")):
        assert correction_rows(WHOLE, feedback).rows == []


def test_a_pair_with_a_cut_answer_is_left_out_and_counted() -> None:
    good, cut = Answer("m", "Hello!", cut=False), Answer("m", "Hello, hel", cut=True)
    messages = (Message("user", "hi"),)
    pairs = [
        Preference("1", "local", messages, good, Answer("m", "Bye.", cut=False), True, 0.0),
        Preference("2", "local", messages, cut, good, True, 0.0),
    ]
    harvest = comparison_rows(pairs)
    assert [row["chosen"] for row in harvest.rows] == ["Hello!"]
    assert harvest.num_left_out == 1
