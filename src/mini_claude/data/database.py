"""The database: one engine, transactions, and migrations that any number of processes may start at once.

SQLite runs in WAL mode with `synchronous=FULL` (a committed turn survives a power cut) and takes its write lock when
a writing transaction begins, because a transaction that starts as a reader and then wants to write can only fail
when another one wrote in between. On PostgreSQL transactions run side by side: what looks at some rows before it writes
others locks a row of which all depend, or asks for a transaction `alone`.
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
from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session

from mini_claude.data.storage_errors import BUSY_SECONDS, hide_details, storage_errors
from mini_claude.errors import InvalidRequest, StorageError

ERASE_BUSY_SECONDS: Final = 2.0  # a reader that holds on to what is to be erased
MIGRATIONS: Final = Path(__file__).parent / "migrations"
CONNECT_SECONDS: Final = 5
# So many connections a process: 8 workers, supervisor, page and a trainer stay below the 100 of PostgreSQL's default.
POOL_SIZE: Final = 4
POOL_OVERFLOW: Final = 4
_MIGRATING: Final = 0x6D696E69  # keys of PostgreSQL's advisory locks
_ALONE: Final = 0x6D696E6A


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
            self._url = _with_driver(make_url(url))
            self._sqlite = self._url.get_backend_name() == "sqlite"
            self.in_memory = self._sqlite and self._url.database in (None, "", ":memory:")
            self.file = Path(self._url.database or "") if self._sqlite and not self.in_memory else None
            self.shared = not self._sqlite  # other hosts may use it too
            self._engine = self._create_engine()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise InvalidRequest(
                f"database_url is not usable ({error}): use sqlite:///file, or postgresql://user@host/name after "
                "`pip install 'mini-claude[postgres]'`.",
                param="database_url",
            ) from error
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        # SQLite's readers see one moment anyway.
        self._reader = (
            self._engine if self._sqlite else self._engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self._watcher: sqlite3.Connection | None = None  # of `version`, made with its first call
        self._watched = (0, 0)  # device and inode of the file that it has open
        self._watcher_lock = threading.Lock()
        # SQLite has one writer at a time anyway: our own threads queue here in order instead of polling its lock.
        # In memory all threads share one connection, so that readers have to queue too.
        lock = threading.Lock()
        self._write_lock = lock if self._sqlite else nullcontext()
        self._read_lock = lock if self.in_memory else nullcontext()

    def _create_engine(self) -> Engine:
        if not self._sqlite:
            engine = create_engine(
                self._url,
                hide_parameters=True,
                pool_pre_ping=True,  # a server that was restarted costs no request
                pool_size=POOL_SIZE,
                max_overflow=POOL_OVERFLOW,
                connect_args={
                    "connect_timeout": CONNECT_SECONDS,
                    "client_encoding": "utf8",
                    "application_name": "mini-claude",
                },
            )
            event.listen(engine, "handle_error", hide_details)
            return engine
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
        with self._one_process(), self._write_lock, storage_errors(), self._writer.begin() as connection:
            if not self._sqlite:
                _require_unicode(connection)
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
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
        with self._read_lock, storage_errors(), self._engine.connect() as connection:
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
        with self._read_lock, storage_errors(), Session(self._reader) as session:
            yield session

    @contextmanager
    def write(self, *, alone: bool = False) -> Iterator[Session]:
        """A transaction: all of it is on the disk when the block ends, or none of it when the block raises.

        `alone`: no other one that was asked for so runs at the same time, in whatever process (with SQLite none ever
        does), and what those before it wrote is seen. Raises `StorageError`; a violated constraint stays SQLAlchemy's
        `IntegrityError`, for the repository to name.
        """
        with self._write_lock, storage_errors(), Session(self._writer) as session, session.begin():
            if alone and not self._sqlite:
                session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ALONE})
            yield session

    def version(self) -> tuple[int, ...] | None:
        """Something that is another one once anybody, in whatever process, has changed anything; None: not known here.

        Takes microseconds and waits for nobody, so that async code may call it. Two of them tell only whether they are
        the same.
        """
        if self.file is None:
            return None
        with self._watcher_lock:
            try:
                status = self.file.stat()
                file = (status.st_dev, status.st_ino)
                if self._watcher is None or self._watched != file:  # another one may lie in its place
                    self._stop_watching()
                    address = f"{self.file.resolve().as_uri()}?mode=rw"
                    self._watcher = sqlite3.connect(address, timeout=0.0, uri=True, check_same_thread=False)
                    self._watched = file
                # https://www.sqlite.org/pragma.html#pragma_data_version: of commits by other connections, and this one
                # makes none.
                (version,) = self._watcher.execute("PRAGMA data_version").fetchone()
            except (OSError, sqlite3.Error):  # gone, damaged, locked for the moment: whoever reads next will tell
                return None
            return (*self._watched, int(version))

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def erase_deleted(self) -> bool:
        """Let nothing of what was deleted be left in an SQLite file; PostgreSQL's own vacuum does that there.

        Writes the file anew, so it may take seconds; writers wait. False: a reader kept the old bytes alive, so try
        again later. Raises `StorageError`. `secure_delete` alone leaves what SQLite had copied between pages before.
        """
        if self.file is None:
            return True
        plain = self._engine.execution_options(begin=None)  # SQLite does none of this inside of a transaction
        with self._write_lock, storage_errors(), plain.connect() as connection:
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
        with self._watcher_lock:
            self._stop_watching()


def mark_for_erasing(session: Session) -> None:
    """Note in this transaction that what it deletes should not only be out of sight: `Database.erase_deleted`."""
    if session.get_bind().dialect.name == "sqlite":
        mark = session.scalar(text("PRAGMA user_version"))
        session.execute(text(f"PRAGMA user_version = {(mark + 1) % 2**31 or 1}"))


def _with_driver(url: URL) -> URL:
    """The URL with the one driver of PostgreSQL that is tested. Raises `ArgumentError` for any other database."""
    if url.drivername == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "postgresql+psycopg" and url.get_backend_name() != "sqlite":
        raise ArgumentError(f"{url.drivername} is not supported")
    return url


def _require_unicode(connection: Connection) -> None:
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise StorageError(
            f"The database stores text as {encoding}: make one with `createdb --encoding=UTF8 --template=template0`."
        )


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
