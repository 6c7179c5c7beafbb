"""The database: one engine, transactions, and migrations that any number of processes may start at once.

SQLite runs in WAL mode with `synchronous=FULL` (a committed turn survives a power cut) and takes its write lock when
a writing transaction begins, because a transaction that starts as a reader and then wants to write can only fail
when another one wrote in between. Everything else here is plain SQLAlchemy, so PostgreSQL works by its URL.
"""

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from mini_claude.errors import InvalidRequest, StorageError

BUSY_SECONDS: Final = 30
ERASE_BUSY_SECONDS: Final = 2.0  # a reader that holds on to what is to be erased
MIGRATIONS: Final = Path(__file__).parent / "migrations"

# What the database says, the code of the error that we raise, and what the person is told.
_REASONS: Final = (
    ("disk is full", "disk_full", "The disk is full; free some space, nothing that was stored is lost."),
    ("no space left", "disk_full", "The disk is full; free some space, nothing that was stored is lost."),
    ("no such table", "storage_error", "The database was removed while the server ran; restart the server."),
    ("unable to open", "storage_error", "The database cannot be opened; check that its folder exists and is ours."),
    ("readonly", "storage_error", "The database is read-only; check the permissions of its file and folder."),
    ("locked", "storage_error", f"The database stayed busy for {BUSY_SECONDS} seconds; try again."),
    ("not a database", "storage_error", "The database file is damaged; restore a copy or move it away."),
    ("malformed", "storage_error", "The database file is damaged; restore a copy or move it away."),
)


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """`damage`: what an integrity check complains of. `migrated`: whether the tables are those of this version."""

    damage: tuple[str, ...]
    migrated: bool


class Database:
    """Connections to one database. Methods block: async code calls them in a thread.

    `url` is an SQLAlchemy URL. Raises `InvalidRequest` for a URL that names no usable database and `StorageError`
    when the folder of an SQLite file cannot be made.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
            self._sqlite = self._url.get_backend_name() == "sqlite"
            self.in_memory = self._sqlite and self._url.database in (None, "", ":memory:")
            self.file = Path(self._url.database or "") if self._sqlite and not self.in_memory else None
            self._engine = self._create_engine()
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise InvalidRequest(
                f"database_url is not usable ({error}); use sqlite:///file, or postgresql+psycopg://user@host/name "
                "with psycopg installed.",
                param="database_url",
            ) from error
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        # SQLite has one writer at a time anyway: our own threads queue here in order instead of polling its lock.
        # In memory all threads share one connection, so that readers have to queue too.
        lock = threading.Lock()
        self._write_lock = lock if self._sqlite else nullcontext()
        self._read_lock = lock if self.in_memory else nullcontext()

    def _create_engine(self) -> Engine:
        if not self._sqlite:
            return create_engine(self._url, pool_pre_ping=True, hide_parameters=True)
        if self.file is not None:
            try:
                self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"The folder of the database cannot be made: {error}.") from error
        # hide_parameters: what people write must not reach the log inside an exception.
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
        if self.in_memory:
            options = {"connect_args": {"check_same_thread": False}, "poolclass": StaticPool}
        engine = create_engine(self._url, hide_parameters=True, **options)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def migrate(self) -> None:
        """Bring the tables up to date; safe when several processes do it at once, and when one dies half-way."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._one_process(), self._write_lock, _storage_errors(), self._writer.begin() as connection:
            if not self._sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(0x6D696E69)"))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StorageError(
                    f"The database was made by another version of Mini-Claude ({error}); update, or use a new data_dir."
                ) from error

    def examine(self) -> DatabaseState:
        """Read all of it (SQLite; some seconds for each GB) and change nothing. Raises `StorageError`."""
        head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
        with self._read_lock, _storage_errors(), self._engine.connect() as connection:
            checks = ("integrity_check(5)", "foreign_key_check") if self._sqlite else ()
            complaints = [
                " ".join(map(str, row)) for each in checks for row in connection.execute(text(f"PRAGMA {each}"))
            ]
            revision = MigrationContext.configure(connection).get_current_revision()
        return DatabaseState(tuple(line for line in complaints if line != "ok"), revision == head)

    @contextmanager
    def _one_process(self) -> Iterator[None]:
        # The first connection switches a new file to WAL, for which SQLite does not wait its turn.
        if self.file is None:
            yield
            return
        try:
            lock = self.file.with_name(self.file.name + ".lock").open("w")
        except OSError as error:
            raise StorageError(f"The folder of the database is not writable: {error}.") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view; nothing that is changed in it is kept. Raises `StorageError`."""
        with self._read_lock, _storage_errors(), Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: all of it is on the disk when the block ends, or none of it when the block raises.

        Raises `StorageError`; a violated constraint stays SQLAlchemy's `IntegrityError`, for the repository to name.
        """
        with self._write_lock, _storage_errors(), Session(self._writer) as session, session.begin():
            yield session

    def erase_deleted(self) -> bool:
        """Let nothing of what was deleted be left in an SQLite file; PostgreSQL's own vacuum does that there.

        Writes the file anew, so it may take seconds; writers wait. False: a reader kept the old bytes alive, so try
        again later. Raises `StorageError`. `secure_delete` alone leaves what SQLite had copied between pages before.
        """
        if self.file is None:
            return True
        plain = self._engine.execution_options(begin=None)  # SQLite does none of this inside of a transaction
        with self._write_lock, _storage_errors(), plain.connect() as connection:
            mark = connection.scalar(text("PRAGMA user_version"))
            if mark == 0:
                return True
            connection.exec_driver_sql("VACUUM")
            # Whoever writes waits as long as this waits for readers.
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {ERASE_BUSY_SECONDS * 1000:.0f}")
            try:
                busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
            finally:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        if not busy:
            with self.write() as session:
                if session.scalar(text("PRAGMA user_version")) == mark:  # else somebody deleted more meanwhile
                    session.execute(text("PRAGMA user_version = 0"))
        return not busy

    def close(self) -> None:
        """Close all connections; with a database in memory its contents end here."""
        self._engine.dispose()


def mark_for_erasing(session: Session) -> None:
    """Note in this transaction that what it deletes should not only be out of sight: `Database.erase_deleted`."""
    if session.get_bind().dialect.name == "sqlite":
        mark = session.scalar(text("PRAGMA user_version"))
        session.execute(text(f"PRAGMA user_version = {(mark + 1) % 2**31 or 1}"))


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions, not the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.create_function("lower", 1, _lower, deterministic=True)  # SQLite's own knows the letters of ASCII only


def _lower(value: object) -> str | None:
    return None if value is None else str(value).lower()


def _begin_sqlite(connection: Connection) -> None:
    statement = connection.get_execution_options().get("begin", "BEGIN")
    if statement is not None:
        connection.exec_driver_sql(statement)


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, no database can hold it
        raise InvalidRequest("A text holds half of a surrogate pair; send valid Unicode.") from error
    except SQLAlchemyError as error:
        said = str(error.orig if isinstance(error, DBAPIError) else error).lower()
        for fragment, code, sentence in _REASONS:
            if fragment in said:
                raise StorageError(sentence, code=code) from error
        raise StorageError("The database refused; the log of the server says why.") from error
