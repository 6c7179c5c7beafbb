"""Feedback as rows: one a reply, gone with its session, and nobody else's."""

from dataclasses import replace

import pytest

from mini_claude.data.database import Database
from mini_claude.data.feedback import FeedbackRepository
from mini_claude.data.records import ChatSession, ReplyEnding, Turn
from mini_claude.data.sessions import SessionRepository
from mini_claude.errors import Conflict, NotFound

SESSION = ChatSession("s" * 32, "alice", "title", None, None, None, 1.0, 1.0)
REPLY = "r" * 32
TURNS = (
    Turn("u" * 32, SESSION.id, None, "user", "hi", "done", 1.0),
    Turn(REPLY, SESSION.id, "u" * 32, "assistant", "hello", "done", 1.0),
    Turn("e" * 32, SESSION.id, "u" * 32, "assistant", " ", "failed", 1.0),
    Turn("w" * 32, SESSION.id, "u" * 32, "assistant", "", "running", 1.0),
)


@pytest.fixture
def sessions(database: Database) -> SessionRepository:
    sessions = SessionRepository(database)
    sessions.begin("alice", TURNS, create=SESSION)
    return sessions


@pytest.fixture
def feedback(database: Database, sessions: SessionRepository) -> FeedbackRepository:
    return FeedbackRepository(database)


def test_the_last_feedback_counts_and_neither_takes_it_away(feedback: FeedbackRepository) -> None:
    feedback.rate("alice", REPLY, "up", None)
    second = feedback.rate("alice", REPLY, "down", "Good day.")
    assert feedback.of_session("alice", SESSION.id) == {REPLY: second}
    assert (second.rating, second.correction) == ("down", "Good day.")
    for _ in range(2):  # the second time there is nothing to take away
        assert feedback.rate("alice", REPLY, None, None).rating is None
        assert feedback.of_session("alice", SESSION.id) == {}
    assert feedback.sessions("alice") == ()


def test_an_empty_reply_can_be_corrected_and_not_rated(feedback: FeedbackRepository) -> None:
    with pytest.raises(Conflict) as caught:
        feedback.rate("alice", "e" * 32, "down", "text")
    assert caught.value.param == "rating"
    feedback.rate("alice", "e" * 32, None, "text")
    assert feedback.of_session("alice", SESSION.id)["e" * 32].correction == "text"


def test_a_reply_that_is_being_written_can_have_feedback_once_it_has_ended(
    feedback: FeedbackRepository, sessions: SessionRepository
) -> None:
    with pytest.raises(Conflict, match="still being written"):
        feedback.rate("alice", "w" * 32, None, "text")
    sessions.finish("w" * 32, ReplyEnding("late", "stop", None, ()))
    assert feedback.rate("alice", "w" * 32, "up", None).rating == "up"


def test_feedback_goes_with_its_session_and_other_sessions_keep_theirs(
    feedback: FeedbackRepository, sessions: SessionRepository
) -> None:
    other = replace(SESSION, id="o" * 32, created_at=0.5)
    turn = replace(TURNS[1], id="q" * 32, session_id=other.id, parent_id=None)
    sessions.begin("alice", (turn,), create=other)
    feedback.rate("alice", REPLY, "up", None)
    feedback.rate("alice", turn.id, "up", None)
    assert feedback.sessions("alice") == (other.id, SESSION.id)
    sessions.delete("alice", SESSION.id)
    assert feedback.sessions("alice") == (other.id,)
    assert list(feedback.of_session("alice", other.id)) == [turn.id]


def test_what_is_no_reply_of_the_owners_does_not_exist(feedback: FeedbackRepository) -> None:
    for owner, reply_id in (("bob", REPLY), ("alice", "u" * 32), ("alice", "nothing"), ("alice", SESSION.id)):
        with pytest.raises(NotFound):
            feedback.rate(owner, reply_id, "up", None)
    with pytest.raises(NotFound):
        feedback.of_session("bob", SESSION.id)
    feedback.rate("alice", REPLY, "up", None)
    assert feedback.sessions("bob") == ()
