"""Conversations that nobody touched: when they go, and that nothing of them is left in the file."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import event, text

from mini_claude.data.database import Database
from mini_claude.data.feedback import FeedbackRepository
from mini_claude.data.records import ChatSession, ReplyEnding, Turn, TurnStatus
from mini_claude.data.sessions import LOST_SECONDS, SessionRepository
from mini_claude.runtime.retention import DAY_SECONDS, SESSIONS_PER_TRANSACTION, Retention
from mini_claude.runtime.supervisor import Supervisor
from mini_claude.utils.config import Settings

from ..clock import Clock

KEPT = 30 * DAY_SECONDS
SECRET = "what nobody else may ever read"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{file}")
    # As most SQLites are compiled; with it they overwrite most of what they delete, and not all.
    event.listen(database._engine, "connect", lambda each, _: each.execute("PRAGMA secure_delete=OFF"))
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now = 100 * KEPT
    return clock


def retention(database: Database, clock: Clock) -> Retention:
    return Retention(database, KEPT, clock)


def talk(database: Database, touched: float, content: str = "x", status: TurnStatus = "done") -> tuple[str, str]:
    """A conversation that was touched then; its id and its reply's."""
    session_id, asked, reply_id = (uuid.uuid4().hex for _ in range(3))
    turns = (
        Turn(asked, session_id, None, "user", content, "done", touched),
        Turn(reply_id, session_id, asked, "assistant", content, status, touched, model="m"),
    )
    session = ChatSession(session_id, "ada", content[:60], None, content, None, touched, touched)
    SessionRepository(database).begin("ada", turns, create=session)
    with database.write() as rows:
        rows.execute(
            text("UPDATE sessions SET updated_at = :touched WHERE id = :id"), {"touched": touched, "id": session_id}
        )
    return session_id, reply_id


def there(database: Database) -> set[str]:
    return {session.id for session in SessionRepository(database).list("ada", 1000)}


def rows_of(database: Database, *tables: str) -> list[int]:
    with database.read() as session:
        return [int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0) for table in tables]


def test_what_nobody_touched_for_so_long_goes_and_nothing_else(database: Database, clock: Clock) -> None:
    old, _ = talk(database, clock.now - KEPT - 1)
    young, _ = talk(database, clock.now - KEPT + 1)
    assert retention(database, clock).sweep() == 1
    assert there(database) == {young}
    assert rows_of(database, "turns") == [2]
    clock.now += 1.5
    assert retention(database, clock).sweep() == 1
    assert (there(database), rows_of(database, "sessions", "turns")) == (set(), [0, 0])
    assert old not in there(database)


def test_feedback_touches_a_conversation_and_goes_with_it(database: Database, clock: Clock) -> None:
    session_id, reply_id = talk(database, clock.now - KEPT - 1)
    FeedbackRepository(database).rate("ada", reply_id, "up", "a correction")
    with database.write() as session:
        session.execute(text("UPDATE feedback SET updated_at = :now"), {"now": clock.now - 10})
    assert retention(database, clock).sweep() == 0
    assert there(database) == {session_id}
    clock.now += KEPT
    assert retention(database, clock).sweep() == 1
    assert rows_of(database, "sessions", "turns", "feedback") == [0, 0, 0]


def test_a_reply_that_is_being_written_keeps_its_conversation_until_it_must_be_lost(
    database: Database, clock: Clock
) -> None:
    brief = Retention(database, 10.0, clock)
    session_id, reply_id = talk(database, clock.now - 60, status="running")
    assert brief.sweep() == 0
    assert SessionRepository(database).finish(reply_id, ReplyEnding("hello", "stop", None, (5,)))
    assert SessionRepository(database).conversation("ada", session_id).turns[1].content == "hello"
    lost, _ = talk(database, clock.now - LOST_SECONDS - 1, status="running")
    assert brief.sweep() == 1
    assert lost not in there(database)


def test_more_than_one_transaction_takes_go_all(database: Database, clock: Clock) -> None:
    for _ in range(3):
        talk(database, clock.now - KEPT - 1)
    assert SessionRepository(database).expire(clock.now, KEPT, 2) == 2
    assert SESSIONS_PER_TRANSACTION > 1
    assert retention(database, clock).sweep() == 1
    assert there(database) == set()


def bytes_of(file: Path) -> bytes:
    """Everything in the database's files."""
    return b"".join(each.read_bytes() for each in sorted(file.parent.iterdir()) if each.name.startswith(file.name))


def test_nothing_that_was_said_is_left_in_the_file(database: Database, file: Path, clock: Clock) -> None:
    kept, _ = talk(database, clock.now, "words that stay")
    # Of many sizes and mixed with others, so that SQLite moves them between pages, where copies stay behind.
    for size in range(1, 120):
        _, reply_id = talk(database, clock.now - KEPT - 1, f"{SECRET} " * (size**2 % 300))
        talk(database, clock.now, "words that stay " * (size**2 % 200))
        FeedbackRepository(database).rate("ada", reply_id, None, SECRET)
        with database.write() as session:
            session.execute(text("UPDATE feedback SET updated_at = 1.0"))
    assert SECRET.encode() in bytes_of(file)
    assert retention(database, clock).sweep() == 119
    found = bytes_of(file)
    assert SECRET.encode() not in found
    assert b"words that stay" in found
    assert kept in there(database)


def test_what_somebody_deleted_by_hand_is_erased_too_and_an_idle_file_is_left_alone(
    database: Database, file: Path, clock: Clock
) -> None:
    session_id, _ = talk(database, clock.now, SECRET)
    SessionRepository(database).delete("ada", session_id)
    assert SECRET.encode() in bytes_of(file)
    retention(database, clock).sweep()
    assert SECRET.encode() not in bytes_of(file)
    files = [file, file.with_name(f"{file.name}-wal")]
    before = [(each.stat().st_mtime_ns, each.read_bytes()) for each in files]
    retention(database, clock).sweep()
    assert [(each.stat().st_mtime_ns, each.read_bytes()) for each in files] == before


def test_a_reader_that_holds_on_to_old_bytes_delays_the_erasing_and_nothing_else(
    file: Path, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mini_claude.data.database.ERASE_BUSY_SECONDS", 0.05)
    talk(database, clock.now - KEPT - 1, SECRET)
    with database.read() as reader:
        assert reader.scalar(text("SELECT count(*) FROM sessions")) == 1
        assert retention(database, clock).sweep() == 1
        assert SECRET.encode() in bytes_of(file)
    assert retention(database, clock).sweep() == 0  # there is nothing due, and something to be erased
    assert SECRET.encode() not in bytes_of(file)


def test_it_is_off_unless_somebody_asks_for_it(tmp_path: Path) -> None:
    assert Retention.open(Settings(data_dir=tmp_path)) is None
    memory = Settings(data_dir=tmp_path, session_retention_days=1.0, database_url=SecretStr("sqlite://"))
    assert Retention.open(memory) is None
    assert Retention.open(Settings(data_dir=tmp_path, session_retention_days=1.0)) is not None


async def test_the_supervisor_sweeps_as_soon_as_it_runs(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, session_retention_days=1.0)
    supervisor = Supervisor(settings, retention=Retention.open(settings))
    database = Database(settings.effective_database_url)
    talk(database, 1.0)
    await supervisor.listen()
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(20):
        while there(database):
            await asyncio.sleep(0.01)
    supervisor.end()
    await running
    database.close()
