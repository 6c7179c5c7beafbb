"""The database as commands open it that need no running server."""

from collections.abc import Iterator
from contextlib import contextmanager

from mini_claude.data.database import Database
from mini_claude.data.door import DoorRepository
from mini_claude.utils.config import Settings


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """The data directory's database, with its tables up to date."""
    database = Database(settings.effective_database_url)
    try:
        database.migrate()
        yield database
    finally:
        database.close()


def door_is_shut(settings: Settings) -> bool:
    """Whether a key or a user was ever made, so that nobody is let in without one."""
    with open_database(settings) as database:
        return DoorRepository(database).is_shut()
