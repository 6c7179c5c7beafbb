from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_claude.data.database import Database


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'folder' / 'test.db'}"


@pytest.fixture(params=["file", "memory"])
def database(request: pytest.FixtureRequest, url: str) -> Iterator[Database]:
    database = Database(url if request.param == "file" else "sqlite://")
    database.migrate()
    yield database
    database.close()
