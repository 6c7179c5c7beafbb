"""The id of a data directory among those that share a database."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mini_claude.data.database import Database
from mini_claude.data.host import FILE, host_of
from mini_claude.errors import StorageError

NOWHERE = "postgresql://user@host/name"  # nothing connects to it


@pytest.fixture
def shared() -> Database:
    return Database(NOWHERE)


def test_processes_that_start_at_once_agree_and_another_data_directory_differs(
    shared: Database, tmp_path: Path
) -> None:
    own: Callable[[object], str | None] = lambda _: host_of(shared, tmp_path / "own")  # noqa: E731
    with ThreadPoolExecutor(8) as pool:
        (host,) = set(pool.map(own, range(40)))
    assert host is not None
    assert re.fullmatch(r"[0-9a-f]{32}", host)
    assert [path.name for path in (tmp_path / "own").iterdir()] == [FILE]
    assert host_of(shared, tmp_path / "other") != host


def test_what_cannot_be_shared_has_none(url: str, tmp_path: Path) -> None:
    assert host_of(Database(url), tmp_path / "own") is None
    assert not (tmp_path / "own").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_error(shared: Database, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        host_of(shared, tmp_path / "file")
