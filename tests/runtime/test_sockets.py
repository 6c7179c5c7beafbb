"""Folders of sockets: short enough for the kernel, and nobody else's."""

import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_claude.errors import StorageError
from mini_claude.runtime import sockets


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A data directory whose own folder is short enough for sockets, which pytest's may not be."""
    with tempfile.TemporaryDirectory(prefix="mc") as folder:
        yield Path(folder).resolve() / "data"


@pytest.fixture
def long_dir(tmp_path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory too deep for sockets, and a temporary directory of the test's own."""
    short_dir.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(short_dir))
    return tmp_path / "deep" / ("d" * 100)


def private_name(data_dir: Path) -> str:
    digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    return f"mini-claude-{os.getuid()}-{digest}"


def can_bind(data_dir: Path) -> bool:
    """Whether the kernel takes the longest kind of address that this data directory gives."""
    path = sockets.new_engine_address(data_dir)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(path)
    return Path(path).is_socket()


def test_a_short_data_directory_holds_its_sockets_itself(short_dir: Path) -> None:
    assert sockets.runtime_dir(short_dir) == short_dir / "run"
    assert can_bind(short_dir)


def test_a_deep_data_directory_gets_a_short_folder_of_its_own(long_dir: Path, short_dir: Path) -> None:
    folder = sockets.runtime_dir(long_dir)
    assert folder == short_dir / private_name(long_dir)
    assert sockets.runtime_dir(long_dir) == folder
    assert sockets.runtime_dir(long_dir.with_name("e" * 100)) != folder
    assert can_bind(long_dir)


def test_the_folder_is_short_also_where_the_temporary_directory_is_not(
    long_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(long_dir.with_name("t" * 100)))
    try:
        assert can_bind(long_dir)
    finally:
        shutil.rmtree(sockets.runtime_dir(long_dir))


def test_the_same_directory_by_another_path_has_the_same_sockets(short_dir: Path) -> None:
    short_dir.mkdir()
    link = short_dir.parent / "link"
    link.symlink_to(short_dir)
    assert sockets.supervisor_address(link) == sockets.supervisor_address(short_dir)


def test_sockets_and_a_new_data_directory_are_closed_to_other_users(short_dir: Path, long_dir: Path) -> None:
    fresh = short_dir / "fresh"
    for data_dir in (fresh, long_dir):
        folder = sockets.runtime_dir(data_dir)
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)
        assert sockets.runtime_dir(data_dir).stat().st_mode & 0o777 == 0o700
        assert data_dir.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_refused(long_dir: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    theirs = short_dir / private_name(long_dir)
    theirs.mkdir()  # by whoever runs the test, who is not 4242
    with pytest.raises(StorageError, match="belongs to another user"):
        sockets.runtime_dir(long_dir)


def test_a_link_in_the_place_of_the_folder_is_refused(long_dir: Path, short_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    link = short_dir / private_name(long_dir)
    link.symlink_to(target)
    with pytest.raises(StorageError):
        sockets.runtime_dir(long_dir)
    assert target.stat().st_mode & 0o777 == 0o755
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError):
        sockets.runtime_dir(long_dir)


def test_a_data_directory_that_cannot_be_made_is_a_sentence_with_the_setting(short_dir: Path) -> None:
    short_dir.write_text("a file")
    for data_dir in (short_dir, short_dir / "below"):
        with pytest.raises(StorageError, match=r"cannot be used: .*MINI_CLAUDE_DATA_DIR"):
            sockets.runtime_dir(data_dir)


def test_engine_addresses_are_never_the_same_and_locks_stay_so(short_dir: Path) -> None:
    assert len({sockets.new_engine_address(short_dir) for _ in range(100)}) == 100
    assert sockets.supervisor_address(short_dir) == f"{short_dir}/run/supervisor.sock"
    locks = {sockets.supervisor_lock(short_dir), sockets.start_lock(short_dir)}
    assert len(locks) == 2
    assert {lock.parent for lock in locks} == {short_dir / "run"}
