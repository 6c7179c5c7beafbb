"""What the session repository promises beyond what the chat service's tests show."""

import time
from dataclasses import replace

import pytest

from mini_claude.data.database import Database
from mini_claude.data.records import ChatSession, ReplyEnding, Turn
from mini_claude.data.sessions import SessionRepository
from mini_claude.errors import ErrorInfo, NotFound
from mini_claude.types import Usage

SESSION = ChatSession("s" * 32, "alice", "title", None, None, None, 1.0, 1.0)
ENDING = ReplyEnding("hello", "stop", Usage(3, 2, 1), (2, 5, 5))


@pytest.fixture
def sessions(database: Database) -> SessionRepository:
    return SessionRepository(database)


def chain(length: int) -> list[Turn]:
    """Turns below one another, the last one a running reply."""
    turns = [
        Turn(f"{n:032}", SESSION.id, f"{n - 1:032}" if n else None, "assistant" if n % 2 else "user", "x", "done", 1.0)
        for n in range(length - 1)
    ]
    parent = turns[-1].id if turns else None
    return [*turns, Turn("r" * 32, SESSION.id, parent, "assistant", "", "running", time.time(), model="m")]


def test_an_ending_is_stored_once_whoever_comes_second(sessions: SessionRepository) -> None:
    sessions.begin("alice", chain(2), create=SESSION)
    assert sessions.finish("r" * 32, ENDING)
    assert not sessions.finish("r" * 32, ReplyEnding("other", "error", None, (), ("EngineDied", ErrorInfo("c", "m"))))
    turn = sessions.reply("alice", "r" * 32)
    assert (turn.content, turn.status, turn.usage, turn.delta_ends) == ("hello", "done", Usage(3, 2, 1), (2, 5, 5))
    assert turn.error is None
    assert sessions.conversation("alice", SESSION.id).session.head_turn_id == "r" * 32


def test_the_ending_of_a_deleted_session_is_ignored(sessions: SessionRepository) -> None:
    sessions.begin("alice", chain(2), create=SESSION)
    assert [turn.id for turn in sessions.delete("alice", SESSION.id)] == ["r" * 32]
    assert not sessions.finish("r" * 32, ENDING)


def test_a_conversation_of_thousands_of_turns_is_walked_and_deleted(sessions: SessionRepository) -> None:
    turns = chain(3001)
    sessions.begin("alice", turns, create=SESSION)
    _, path = sessions.branch("alice", SESSION.id, "r" * 32)
    assert [turn.id for turn in path] == [turn.id for turn in turns]
    sessions.delete("alice", SESSION.id)
    with pytest.raises(NotFound):
        sessions.conversation("alice", SESSION.id)


def test_a_reply_for_a_deleted_session_stores_nothing(sessions: SessionRepository) -> None:
    with pytest.raises(NotFound):
        sessions.begin("alice", chain(2))
    with pytest.raises(NotFound):
        sessions.reply("alice", "r" * 32)


def test_every_call_refuses_another_owner(sessions: SessionRepository) -> None:
    sessions.begin("alice", chain(2), create=SESSION)
    for call in (
        lambda: sessions.conversation("bob", SESSION.id),
        lambda: sessions.branch("bob", SESSION.id, None),
        lambda: sessions.begin("bob", chain(1)),
        lambda: sessions.reply("bob", "r" * 32),
        lambda: sessions.rename("bob", SESSION.id, "mine"),
        lambda: sessions.select("bob", SESSION.id, "r" * 32),
        lambda: sessions.delete("bob", SESSION.id),
        lambda: sessions.list("bob", 10, SESSION.id),
    ):
        with pytest.raises(NotFound):
            call()
    assert sessions.list("bob", 10) == ()
    assert sessions.conversation("alice", SESSION.id).session.title == "title"


@pytest.mark.parametrize(
    ("said", "sought"),
    [
        ("Über Ärger", "über ä"),
        ("ПРИВЕТ", "привет"),
        ("Straße", "STRASSE"[:4]),
        ("100 %_\\ sure", "%_\\"),
        ("ΟΔΟΣ", "οδος"),
    ],
)
@pytest.mark.parametrize("place", ["title", "content"])
def test_a_search_folds_every_letter_and_knows_no_wildcards(
    sessions: SessionRepository, place: str, said: str, sought: str
) -> None:
    title, content = (said, "x") if place == "title" else ("x", said)
    session = ChatSession(SESSION.id, "alice", title, None, None, None, 1.0, 1.0)
    sessions.begin("alice", [Turn("u" * 32, SESSION.id, None, "user", content, "done", 1.0)], create=session)
    assert [each.id for each in sessions.list("alice", 10, text=sought)] == [SESSION.id]
    assert sessions.list("alice", 10, text=sought + "!") == ()


def test_the_longest_reference_of_a_model_is_stored(sessions: SessionRepository) -> None:
    reference = f"{'m' * 64}:{'a' * 64}@{10**9}"
    turns = [replace(turn, model=reference) for turn in chain(2)]
    sessions.begin("alice", turns, create=SESSION, model=reference)
    session, path = sessions.branch("alice", SESSION.id, "r" * 32)
    assert (session.model, path[-1].model) == (reference, reference)


def test_a_reply_with_nul_is_stored_with_a_character_of_the_same_length(sessions: SessionRepository) -> None:
    sessions.begin("alice", chain(2), create=SESSION)
    assert sessions.finish("r" * 32, ReplyEnding("a\0b", "stop", Usage(3, 2, 1), (1, 3)))
    turn = sessions.reply("alice", "r" * 32)
    assert (turn.content, turn.delta_ends) == ("a\ufffdb", (1, 3))
