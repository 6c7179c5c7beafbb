"""Opening, migrating and losing the database."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, inspect, text

from mini_claude.data.database import Database
from mini_claude.data.keys import KeyRepository
from mini_claude.data.records import ApiKey
from mini_claude.errors import InvalidRequest, StorageError

from .full_disk import full_disk

KEY = ApiKey("1" * 32, "laptop", "mc-abcdef", 1.0, "user")


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def test_migrating_twice_keeps_what_is_stored(database: Database) -> None:
    KeyRepository(database).add(KEY, "f" * 64)
    database.migrate()
    assert KeyRepository(database).list() == (KEY,)


def test_processes_that_start_at_once_migrate_once_and_all_work(any_url: str) -> None:
    code = (
        "import sys; from mini_claude.data.database import Database\n"
        "sys.stdin.read()\n"
        f"database = Database({any_url!r}); database.migrate()\n"
        "with database.read() as session: pass\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:  # none goes on before its standard input ends
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        assert process.stderr is not None
        with process.stderr:
            assert process.stderr.read() == ""
        process.wait(timeout=60)
    assert [process.returncode for process in processes] == [0] * 4


def test_a_migration_that_is_cut_off_leaves_nothing_behind(any_url: str) -> None:
    def cut_off(
        connection: Connection, cursor: object, statement: str, parameters: object, context: object, many: bool
    ) -> None:
        if "CREATE TABLE turns" in statement:
            raise KeyboardInterrupt

    with opened(any_url) as database:
        event.listen(database._engine, "before_cursor_execute", cut_off)
        with pytest.raises(KeyboardInterrupt):
            database.migrate()
    with opened(any_url) as database:
        with database.read() as session:
            assert inspect(session.connection()).get_table_names() == []
        database.migrate()
        assert KeyRepository(database).list() == ()


def test_a_file_survives_power_cuts_and_serves_readers_while_it_is_written(url: str) -> None:
    with opened(url) as database:
        database.migrate()
        with database.write() as session:
            pragmas = [
                session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert pragmas == ["wal", 2, 1]
            with database.read() as reader:
                assert reader.scalar(text("SELECT count(*) FROM sessions")) == 0


def test_what_was_done_in_a_transaction_that_raises_is_undone(database: Database) -> None:
    with pytest.raises(KeyError), database.write() as session:
        session.execute(text("INSERT INTO sessions VALUES ('a', 'o', 't', NULL, NULL, NULL, 1, 1)"))
        raise KeyError
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM sessions")) == 0


def test_threads_share_a_database_without_losing_writes(database: Database) -> None:
    repository = KeyRepository(database)

    def add(first: int) -> None:
        for number in range(first, first + 20):
            repository.add(ApiKey(f"{number:032}", "name", "mc-abcdef", number, "user"), "f" * 64)
            assert len(repository.find_by_prefix("mc-abcdef")) > 0

    threads = [threading.Thread(target=add, args=(100 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(repository.list()) == 120


@pytest.mark.parametrize("database", ["file", "memory"], indirect=True)
def test_a_full_disk_is_one_clear_error_and_passes(database: Database) -> None:
    repository = KeyRepository(database)
    repository.add(KEY, "f" * 64)
    with full_disk(database):
        with pytest.raises(StorageError, match="disk is full") as caught:
            for number in range(1000):
                repository.add(ApiKey(f"{number:032}", "n" * 200, "mc-abcdef", 1.0, "user"), "f" * 64)
        assert caught.value.code == "disk_full"
        stored = repository.list()
        assert KEY in stored
    repository.add(ApiKey("2" * 32, "n" * 200, "mc-abcdef", 2.0, "user"), "f" * 64)
    assert len(repository.list()) == len(stored) + 1


def test_a_database_that_was_removed_is_one_clear_error(url: str, tmp_path: Path) -> None:
    with opened(url) as database:
        database.migrate()
        database.close()
        for file in (tmp_path / "folder").iterdir():
            file.unlink()
        with pytest.raises(StorageError, match="removed while the server ran"):
            KeyRepository(database).list()
        (tmp_path / "folder" / "test.db").unlink()
        (tmp_path / "folder").rename(tmp_path / "elsewhere")
        database.close()
        with pytest.raises(StorageError, match="cannot be opened"):
            KeyRepository(database).list()


def test_a_damaged_file_is_one_clear_error(url: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "test.db").write_bytes(b"This was a database once." * 100)
    with opened(url) as database, pytest.raises(StorageError, match="damaged"):
        database.migrate()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="folder of the database cannot be made"):
        Database(f"sqlite:///{tmp_path}/file/test.db")


def test_a_database_of_a_later_version_is_refused(any_url: str) -> None:
    with opened(any_url) as database:
        database.migrate()
        with database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StorageError, match="another version"):
            database.migrate()


@pytest.mark.parametrize(
    "url", ["nonsense", "oracle9://host/name", "mysql://user:secret@host/x", "postgresql+psycopg2://user:secret@host/x"]
)
def test_an_unusable_url_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(InvalidRequest, match="database_url") as caught:
        Database(url)
    assert "secret" not in caught.value.message


def test_a_missing_driver_of_postgresql_is_told_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InvalidRequest, match=r"mini-claude\[postgres\]") as caught:
        Database("postgresql://user:secret@host/name")
    assert "secret" not in caught.value.message


def test_errors_never_quote_what_was_stored(database: Database) -> None:
    with pytest.raises(StorageError) as caught, database.write() as session:
        session.execute(text("INSERT INTO nowhere VALUES (:words)"), {"words": "a private prompt"})
    assert "private" not in f"{caught.value} {caught.value.__cause__}"


def test_the_version_is_another_one_after_each_change_by_whomever_and_only_then(url: str) -> None:
    with opened(url) as database, opened(url) as other:
        assert database.version() is None  # there is no file yet, and asking makes none
        database.migrate()
        KeyRepository(database).add(KEY, "f" * 64)
        first = database.version()
        assert first is not None
        KeyRepository(other).list()
        with pytest.raises(ZeroDivisionError), other.write() as session:  # rolled back
            session.execute(text("DELETE FROM api_keys"))
            raise ZeroDivisionError
        assert database.version() == first
        KeyRepository(other).revoke(KEY.id, 2.0)
        second = database.version()
        KeyRepository(database).add(ApiKey("2" * 32, "phone", "mc-abcdef", 2.0, "user"), "f" * 64)
        third = database.version()
        code = "import sys; from mini_claude.data.database import Database\n"
        code += (
            "with Database(sys.argv[1]).write() as session: session.connection().exec_driver_sql('DROP TABLE users')"
        )
        subprocess.run([sys.executable, "-c", code, url], check=True)
        assert len({first, second, third, database.version()}) == 4


def test_another_file_in_the_place_of_the_first_has_another_version(url: str, tmp_path: Path) -> None:
    with opened(url) as database:
        database.migrate()
        first = database.version()
        file = tmp_path / "folder" / "test.db"
        file.rename(file.with_name("moved.db"))
        assert database.version() is None
        for rest in ("-wal", "-shm"):
            file.with_name(file.name + rest).rename(file.with_name("moved.db" + rest))
        with opened(url) as other:
            other.migrate()
        assert database.version() not in (None, first)


def test_the_version_waits_for_no_writer(url: str) -> None:
    with opened(url) as database, opened(url) as other:
        database.migrate()
        before = database.version()
        with other.write() as session:
            session.execute(text("DELETE FROM api_keys"))
            assert database.version() == before


@pytest.mark.parametrize("database", ["memory", "postgresql"], indirect=True)
def test_where_the_version_is_not_known_nobody_is_told_one(database: Database) -> None:
    assert database.version() is None
    KeyRepository(database).add(KEY, "f" * 64)
    assert database.version() is None
