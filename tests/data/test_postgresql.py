"""What differs on PostgreSQL: transactions that run side by side, a server that goes away, and what it cannot store."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pytest
from sqlalchemy import text

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.database import POOL_OVERFLOW, POOL_SIZE, Database
from mini_claude.data.datasets import DatasetRepository
from mini_claude.data.feedback import FeedbackRepository
from mini_claude.data.jobs import JobRepository
from mini_claude.data.keys import KeyRepository
from mini_claude.data.records import ApiKey, ChatSession, Dataset, Limits, ReplyEnding, Turn
from mini_claude.data.sessions import SessionRepository
from mini_claude.errors import Conflict, InvalidRequest, NotFound, StorageError
from mini_claude.training.arguments import JobSpec, LoraSettings, TrainingArguments

from ..postgresql import PostgreSQL, postgresql_server

Item = TypeVar("Item")
Result = TypeVar("Result")
NUM_PROCESSES = 4  # stood for by as many Databases, each with a pool of its own
KEY = ApiKey("1" * 32, "laptop", "mc-abcdef", 1.0, "user")


@pytest.fixture
def databases(postgresql_url: str) -> Iterator[list[Database]]:
    opened = [Database(postgresql_url) for _ in range(NUM_PROCESSES)]
    yield opened
    for database in opened:
        database.close()


def at_once(call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """For each item in a thread of its own, begun together. Raises what the first of them raised."""
    start = threading.Barrier(len(items))

    def run(item: Item) -> Result:
        start.wait()
        return call(item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(run, items))


def dataset(name: str = "rows") -> Dataset:
    return Dataset(name, "me", "a" * 64, "rows.jsonl", "jsonl", "messages", 10, 1, 0, (), 1.0)


def submit(database: Database, key: str | None = None) -> str:
    spec = JobSpec("tiny", "rows", "a" * 64, "bot", LoraSettings(r=4), TrainingArguments(max_steps=3))
    return JobRepository(database).submit("me", spec, "b", key)[0].id


def test_processes_that_do_the_same_at_once_do_it_once(databases: list[Database]) -> None:
    """A dataset's name, an idempotency key, a job, a version number and an event's number are given to one only."""
    added = at_once(lambda each: DatasetRepository(each).add(dataset()), databases)
    assert sorted(is_new for _, is_new in added) == [False] * (NUM_PROCESSES - 1) + [True]
    assert len(set(at_once(lambda each: submit(each, "k"), databases))) == 1
    for _ in range(NUM_PROCESSES - 1):
        submit(databases[0])
    claimed = at_once(lambda each: JobRepository(each).claim(NUM_PROCESSES), databases)
    assert len({job.id for job in claimed if job is not None}) == NUM_PROCESSES
    job = claimed[0]
    assert job is not None
    assert job.token is not None
    token = job.token
    at_once(lambda each: JobRepository(each).append(job.id, token, "progress", {}), databases * 4)
    numbers = [event.number for event in JobRepository(databases[0]).events("me", job.id, 0, 100)]
    assert numbers == list(range(1, 3 + 4 * NUM_PROCESSES))
    versions = at_once(
        lambda each: AdapterRepository(each).add("me", "m", "bot", uuid.uuid4().hex, {}, None), databases * 4
    )
    assert sorted(version.version for version in versions) == list(range(1, 1 + 4 * NUM_PROCESSES))


def test_no_more_jobs_run_than_allowed_whoever_claims_them(databases: list[Database]) -> None:
    DatasetRepository(databases[0]).add(dataset())
    for _ in range(NUM_PROCESSES):
        submit(databases[0])
    claimed = at_once(lambda each: JobRepository(each).claim(2), databases)
    assert len([job for job in claimed if job is not None]) == 2


def test_a_dataset_is_not_deleted_under_the_job_that_is_being_made(databases: list[Database]) -> None:
    def remove() -> bool:
        try:
            DatasetRepository(databases[0]).remove("me", "rows")
        except Conflict:
            return False
        return True

    def make() -> bool:
        try:
            submit(databases[1])
        except NotFound:
            return False
        return True

    for _ in range(20):
        DatasetRepository(databases[0]).add(dataset())
        removed, made = at_once(lambda call: call(), [remove, make])
        assert removed != made
        for job in JobRepository(databases[0]).list("me", 100):
            if job.state == "pending":
                JobRepository(databases[0]).cancel("me", job.id)


def test_what_ends_a_reply_rates_it_and_deletes_its_session_never_wait_for_each_other(
    databases: list[Database],
) -> None:
    def quietly(call: Callable[[], object]) -> None:
        with suppress(NotFound, Conflict):  # the session was deleted before, or the reply still runs
            call()

    ending = ReplyEnding("hello", "stop", None, (5,))
    for number in range(30):
        one = ChatSession(f"s{number}", "me", "title", None, None, None, 1.0, 1.0)
        turns = [
            Turn(f"r{number}-{place}", one.id, None, "assistant", "", "running", 1.0) for place in range(NUM_PROCESSES)
        ]
        SessionRepository(databases[0]).begin("me", turns, create=one)
        calls: list[Callable[[], object]] = []
        for turn, database in zip(turns, databases, strict=True):
            calls.append(partial(SessionRepository(database).finish, turn.id, ending))
            calls.append(partial(FeedbackRepository(database).rate, "me", turn.id, "up", None))
        calls.append(partial(SessionRepository(databases[0]).delete, "me", one.id))
        at_once(quietly, calls)
        assert SessionRepository(databases[0]).list("me", 100) == ()


def test_a_read_sees_one_moment(databases: list[Database]) -> None:
    with databases[0].read() as session:
        assert session.scalar(text("SELECT count(*) FROM api_keys")) == 0
        KeyRepository(databases[1]).add(KEY, "f" * 64)
        assert session.scalar(text("SELECT count(*) FROM api_keys")) == 0
    assert KeyRepository(databases[0]).list() == (KEY,)


def test_more_threads_than_connections_wait_for_one(postgresql: PostgreSQL, postgresql_url: str) -> None:
    database = Database(postgresql_url)
    counted = at_once(lambda _: len(KeyRepository(database).list()), range(5 * (POOL_SIZE + POOL_OVERFLOW)))
    assert set(counted) == {0}
    with database.read() as session:
        query = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert 1 <= (session.scalar(query) or 0) <= POOL_SIZE + POOL_OVERFLOW
    database.close()


def test_a_server_that_was_restarted_costs_no_request_and_one_that_is_away_is_one_clear_error() -> None:
    with postgresql_server() as server, server.database() as url:
        database = Database(url)
        keys = KeyRepository(database)
        keys.add(KEY, "f" * 64)
        server.stop()
        with pytest.raises(StorageError, match="cannot be reached"):
            keys.list()
        with pytest.raises(StorageError, match="cannot be reached"):
            Database(url).migrate()
        server.start()
        assert keys.list() == (KEY,)
        server.stop()
        server.start()
        keys.revoke(KEY.id, 2.0)
        with pytest.raises(StorageError, match="cannot be reached"), database.read() as session:
            session.scalar(text("SELECT 1"))
            server.stop()
            session.scalar(text("SELECT 1"))
        server.start()
        assert [key.revoked_at for key in keys.list()] == [2.0]
        database.close()


def test_a_server_without_free_connections_is_told_with_the_way_out(postgresql: PostgreSQL) -> None:
    with postgresql.database() as url:
        name = url.partition("@/")[2].partition("?")[0]
        postgresql.execute("DROP ROLE IF EXISTS guest")  # whom, unlike a superuser, limits hold for
        postgresql.execute("CREATE ROLE guest LOGIN")
        postgresql.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        with pytest.raises(StorageError, match="max_connections"):
            KeyRepository(Database(url.replace("test@", "guest@"))).list()
        postgresql.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        guest = Database(url.replace("test@", "guest@"))
        with pytest.raises(StorageError, match="must own"):
            KeyRepository(guest).list()
        guest.close()
        with pytest.raises(StorageError, match="database_url"):
            KeyRepository(Database(url.replace(name, "nowhere"))).list()


def test_tables_that_were_removed_are_one_clear_error(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    with database.write() as session:
        session.execute(text("DROP TABLE api_keys"))
    with pytest.raises(StorageError, match="restart the server"):
        KeyRepository(database).list()
    database.close()


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("53100", "disk_full", "disk is full"),
        ("25006", "storage_error", "read-only"),
        ("40P01", "storage_unavailable", "try again"),
        ("40001", "storage_unavailable", "try again"),
        ("57P01", "storage_unavailable", "cannot be reached"),
        ("XX000", "storage_error", "log of the server"),
    ],
)
def test_what_it_says_is_told_by_its_state_in_whatever_language_it_says_it(
    postgresql_url: str, state: str, code: str, words: str
) -> None:
    database = Database(postgresql_url)
    with pytest.raises(StorageError, match=words) as caught, database.write() as session:
        session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'Das geht nicht.' USING ERRCODE = '{state}'; END $$"))
    assert caught.value.code == code
    database.close()


def test_a_database_that_stores_bytes_instead_of_text_is_refused(postgresql: PostgreSQL) -> None:
    postgresql.execute("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII'")
    database = Database(postgresql.url("bytes"))
    with pytest.raises(StorageError, match="encoding=UTF8"):
        database.migrate()
    database.close()
    postgresql.execute("DROP DATABASE bytes")


def test_a_text_with_nul_is_refused_and_stores_nothing(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    with pytest.raises(InvalidRequest, match=r"U\+0000"):
        KeyRepository(database).add(ApiKey("1" * 32, "a\0b", "mc-abcdef", 1.0, "user"), "f" * 64)
    assert KeyRepository(database).list() == ()
    database.close()


def test_an_error_does_not_quote_the_row_that_is_refused(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    rows = "INSERT INTO sessions VALUES ('a', NULL, 'a private title', NULL, NULL, NULL, 1, 1)"
    with pytest.raises(Exception, match="null value") as caught, database.write() as session:
        session.execute(text(rows.replace("'a private title'", ":title")), {"title": "a private title"})
    assert "private" not in f"{caught.value} {caught.value.__cause__!r}"
    database.close()


def test_what_is_too_long_or_too_large_for_its_column_is_the_clients_error(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    for key in (replace(KEY, name="n" * 201), replace(KEY, limits=Limits(requests_per_day=2**63))):
        with pytest.raises(InvalidRequest, match="than what can be stored"):
            KeyRepository(database).add(key, "f" * 64)
    largest = replace(KEY, limits=Limits(requests_per_day=2**63 - 1))
    KeyRepository(database).add(largest, "f" * 64)
    assert KeyRepository(database).list() == (largest,)
    database.close()
