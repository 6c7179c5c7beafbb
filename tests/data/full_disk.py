"""A disk that is full, by SQLite's own limit on the size of a file."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, event

from mini_claude.data.database import Database

NO_LIMIT = 1_073_741_823


@contextmanager
def full_disk(database: Database) -> Iterator[None]:
    """Inside, no transaction can make the file larger."""
    limit = 1  # SQLite takes this as "no more than there is"

    def cap(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {limit}")

    event.listen(database._engine, "begin", cap)
    try:
        yield
    finally:
        limit = NO_LIMIT
