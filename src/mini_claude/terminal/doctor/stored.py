"""The database as it is found: nothing is made, migrated or changed."""

from collections.abc import Iterator
from contextlib import contextmanager

from mini_claude.data.database import Database
from mini_claude.utils.config import Settings


@contextmanager
def existing_database(settings: Settings) -> Iterator[Database | None]:
    """None where there is none yet, and for one in memory. Raises `InvalidRequest` and `StorageError`."""
    default = settings.data_dir / "mini-claude.db"
    if settings.database_in_memory or (settings.database_url is None and not default.exists()):
        yield None
        return
    database = Database(settings.effective_database_url)
    try:
        yield None if database.file is not None and not database.file.exists() else database
    finally:
        database.close()
