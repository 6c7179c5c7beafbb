from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_claude.data.database import Database

from ..postgresql import PostgreSQL

EMPTY = "template0"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'folder' / 'test.db'}"


@pytest.fixture(params=["file", "postgresql"])
def any_url(request: pytest.FixtureRequest, url: str) -> Iterator[str]:
    """Of a database without tables, which several connections may share."""
    if request.param == "file":
        yield url
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    with server.database(EMPTY) as own:
        yield own


@pytest.fixture(params=["file", "memory", "postgresql"])
def database(request: pytest.FixtureRequest, url: str) -> Iterator[Database]:
    """Migrated."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    database = Database("sqlite://" if request.param == "memory" else url)
    database.migrate()
    yield database
    database.close()
