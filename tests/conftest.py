import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_claude.models.catalog import BUILTIN
from mini_claude.models.materialize import materialize

from .postgresql import PostgreSQL, postgresql_server
from .redis_server import Redis, redis_server

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The embedded model, unpacked once for all test runs (15 s the first time)."""
    cache = os.environ.get("MINI_CLAUDE_TEST_MODELS", REPOSITORY / ".venv" / "mini-claude-test-models")
    return materialize(BUILTIN[0], Path(cache), allow_download=False, hub_owners=())


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One server for all tests of this process; none may stop it."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """A migrated database of the test's own."""
    with postgresql.database() as url:
        yield url


@pytest.fixture
def own_postgresql() -> Iterator[PostgreSQL]:
    """One that the test may stop."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
def redis() -> Iterator[Redis]:
    """A server of the test's own: it starts in no time."""
    with redis_server() as server:
        yield server
