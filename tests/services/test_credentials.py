"""Whether a server asks who is calling: with the next request, and looked up only when something was stored since."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mini_claude.data.database import Database
from mini_claude.data.door import DoorRepository
from mini_claude.data.keys import KeyRepository
from mini_claude.data.records import ApiKey
from mini_claude.services.credentials import Credentials

from .conftest import Worker

KEY = ApiKey("1" * 32, "laptop", "mc-abcdef", 1.0, "user")
NOBODY: Any = None  # keys and tokens are not asked


@pytest.fixture
def other(worker: Worker) -> Iterator[KeyRepository]:
    """Of another process."""
    database = Database(worker.services.settings.effective_database_url)
    yield KeyRepository(database)
    database.close()


async def test_a_key_that_another_process_makes_shuts_the_door_for_the_next_request(
    worker: Worker, other: KeyRepository
) -> None:
    credentials = worker.services.credentials
    assert [await credentials.needed() for _ in range(5)] == [False] * 5
    other.add(KEY, "f" * 64)
    assert await credentials.needed()
    other.revoke(KEY.id, 2.0)
    assert await credentials.needed()


async def test_nothing_is_looked_up_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.migrate()
    door = DoorRepository(database)
    looks: list[bool] = []

    def looked(is_shut: bool) -> bool:
        looks.append(is_shut)
        return is_shut

    is_shut = door.is_shut
    monkeypatch.setattr(door, "is_shut", lambda: looked(is_shut()))
    credentials = Credentials(NOBODY, NOBODY, door)
    assert [await credentials.needed() for _ in range(5)] == [False] * 5
    assert looks == [False]
    with database.write():
        pass
    assert not await credentials.needed()
    assert looks == [False]
    KeyRepository(database).add(KEY, "f" * 64)
    assert [await credentials.needed() for _ in range(5)] == [True] * 5
    assert looks == [False, True]
    database.close()
