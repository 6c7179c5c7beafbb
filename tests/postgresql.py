"""A real PostgreSQL for a whole test run, with a fresh database for each test that asks."""

import itertools
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from mini_claude.data.database import Database

from .own_server import OwnServer, own_folder, program, user

TEMPLATE = "migrated"
# What a crash of the machine would do to the data is not tested, and the disk's time is.
FAST = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "listen_addresses=")


class PostgreSQL(OwnServer):
    """Letters beyond ASCII are what its locale knows nothing of (C), as in many containers."""

    def __init__(self, folder: Path) -> None:
        programs = program("postgres", "usr/lib/postgresql/*/bin/postgres").resolve().parent
        made = subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "test", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
            user=user(),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        options = [word for setting in FAST for word in ("-c", setting)]
        command: list[str | Path] = [programs / "postgres", "-D", folder / "data", "-k", folder, *options]
        super().__init__(
            folder, command, self._answers_queries, signal.SIGQUIT
        )  # it waits for no client and no checkpoint
        self._numbers = itertools.count(1)

    def url(self, name: str) -> str:
        """For database_url."""
        return f"postgresql://test@/{name}?host={self.folder}"

    def connect(self, name: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """Each statement commits by itself."""
        return psycopg.connect(host=str(self.folder), user="test", dbname=name, autocommit=True)

    def execute(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement.encode())

    @contextmanager
    def database(self, template: str = TEMPLATE) -> Iterator[str]:
        """The URL of a database of its own, made as a copy of another one."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _answers_queries(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgresql_server() -> Iterator[PostgreSQL]:
    with own_folder() as folder:
        server = PostgreSQL(folder)
        server.start()
        try:
            server.execute(f"CREATE DATABASE {TEMPLATE}")
            database = Database(server.url(TEMPLATE))
            database.migrate()
            database.close()
            yield server
        finally:
            server.stop()
