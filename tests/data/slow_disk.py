"""A disk that takes its time: nobody can store a turn."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from mini_claude.data.database import Database


@contextmanager
def slow_disk(database: Database) -> Iterator[None]:
    """Inside, whoever stores a turn waits. SQLite has one writer at a time; on PostgreSQL the table is locked."""
    with database.write() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("LOCK TABLE turns IN EXCLUSIVE MODE"))
        yield
