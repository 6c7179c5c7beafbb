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
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session

from mini_claude.data.storage_errors import BUSY_SECONDS, hide_details, storage_errors
from mini_claude.errors import InvalidRequest, StorageError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
CONNECT_SECONDS: Final = 5
# So many connections a process: 8 workers, supervisor, page and a trainer stay below the 100 of PostgreSQL's default.
POOL_SIZE: Final = 4
POOL_OVERFLOW: Final = 4
_MIGRATING: Final = 0x6D696E69  # keys of PostgreSQL's advisory locks
_ALONE: Final = 0x6D696E6A


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
            self._file = Path(self._url.database or "") if self._sqlite and not self.in_memory else None
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
        if self._file is not None:
            try:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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

    @contextmanager
    def _one_process(self) -> Iterator[None]:
        # The first connection switches a new file to WAL, for which SQLite does not wait its turn.
        if self._file is None:
            yield
            return
        try:
            lock = self._file.with_name(self._file.name + ".lock").open("w")
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

    def close(self) -> None:
        """Close all connections; with a database in memory its contents end here."""
        self._engine.dispose()


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
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
