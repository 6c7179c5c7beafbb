"""Files of datasets: complete or not there, whatever fails or is killed."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mini_claude.data.dataset_store import DatasetStore, IncomingDataset
from mini_claude.errors import Conflict, NotFound, PayloadTooLarge, StorageError

CONTENT = b'{"text": "Hello"}\n'
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OPEN = os.open
MANIFEST = {"sha256": SHA256, "container": "jsonl", "num_rows": 1}


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets", max_bytes=100, quota_bytes=150)


@contextmanager
def written(store: DatasetStore, content: bytes = CONTENT, suffix: str = ".txt") -> Iterator[IncomingDataset]:
    incoming = store.begin()
    try:
        incoming.write(content[:5])
        incoming.write(bytearray(content[5:]))
        assert incoming.finish(suffix) == hashlib.sha256(content).hexdigest()
        yield incoming
    finally:
        incoming.discard()


def keep(store: DatasetStore) -> None:
    with written(store) as incoming, store.locked(), store.kept(incoming, MANIFEST):
        pass


def files(tmp_path: Path) -> set[str]:
    folder = tmp_path / "datasets"
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {".lock"}


COMPLETE = {SHA256, f"{SHA256}/data.jsonl", f"{SHA256}/manifest.json"}


def test_what_is_kept_lies_under_its_hash(store: DatasetStore, tmp_path: Path) -> None:
    keep(store)
    assert files(tmp_path) == COMPLETE
    assert store.path(SHA256).read_bytes() == CONTENT
    assert store.manifest(SHA256) == MANIFEST


def test_the_same_content_is_kept_once(store: DatasetStore, tmp_path: Path) -> None:
    keep(store)
    before = store.path(SHA256).stat().st_ino
    keep(store)
    assert files(tmp_path) == COMPLETE
    assert store.path(SHA256).stat().st_ino == before


def test_what_is_not_kept_leaves_nothing(store: DatasetStore, tmp_path: Path) -> None:
    with written(store):
        assert files(tmp_path)
    assert files(tmp_path) == set()


def test_keeping_is_taken_back_with_the_transaction(store: DatasetStore, tmp_path: Path) -> None:
    with pytest.raises(Conflict), written(store) as incoming, store.locked(), store.kept(incoming, MANIFEST):
        raise Conflict("The name is taken.")
    assert files(tmp_path) == set()
    keep(store)
    with pytest.raises(Conflict), written(store) as incoming, store.locked(), store.kept(incoming, MANIFEST):
        raise Conflict("The name is taken.")
    assert files(tmp_path) == COMPLETE  # it was here before


def test_removing_leaves_nothing_and_may_be_repeated(store: DatasetStore, tmp_path: Path) -> None:
    keep(store)
    for _ in range(2):
        with store.locked():
            store.remove(SHA256)
    assert files(tmp_path) == set()
    with pytest.raises(NotFound):
        store.path(SHA256)


def test_a_damaged_manifest_makes_room_for_the_next_upload(store: DatasetStore, tmp_path: Path) -> None:
    keep(store)
    store.path(SHA256).with_name("manifest.json").write_bytes(b"{")
    assert store.manifest(SHA256) is None
    keep(store)
    assert files(tmp_path) == COMPLETE
    assert store.manifest(SHA256) == MANIFEST


def test_the_limits_are_exact(store: DatasetStore, tmp_path: Path) -> None:
    incoming = store.begin()
    incoming.write(b"x" * 100)
    with pytest.raises(PayloadTooLarge) as caught:
        incoming.write(b"x")
    incoming.discard()
    assert "100" in caught.value.message
    store.check_quota(150)
    with pytest.raises(PayloadTooLarge) as caught:
        store.check_quota(151)
    assert caught.value.code == "dataset_quota_exceeded"
    assert files(tmp_path) == set()


@pytest.mark.parametrize("suffix", [".php", "/../../x", ".", "", ".jsonl/x", "\0"])
def test_a_suffix_out_of_the_list_is_a_suffix_and_any_other_is_none(store: DatasetStore, suffix: str) -> None:
    with written(store, suffix=suffix) as incoming:
        assert incoming.path.name == ("data" if suffix == "" else "data.unknown")


@pytest.mark.parametrize("sha256", ["../x", "A" * 64, "1" * 63, "1" * 64 + "\n"])
def test_only_a_hash_leads_to_a_file(store: DatasetStore, sha256: str) -> None:
    with pytest.raises(AssertionError):
        store.manifest(sha256)


def test_what_a_killed_process_left_is_swept_away_and_what_a_living_one_writes_is_not(
    store: DatasetStore, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from mini_claude.data.dataset_store import DatasetStore\n"
        "incoming = DatasetStore(Path(sys.argv[1]), 100, 100).begin(); incoming.write(b'half')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "datasets")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"ready\n"
    with written(store):
        assert len(list((tmp_path / "datasets").glob(".incoming-*"))) == 2
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    child.stdin.close()
    with written(store):
        assert len(list((tmp_path / "datasets").glob(".incoming-*"))) == 1
    assert files(tmp_path) == set()


class FailingDisk:
    """Lets the k-th call that writes, makes, names or syncs fail, and all after it."""

    def __init__(self, patch: pytest.MonkeyPatch, code: int) -> None:
        self.left = 1_000_000
        self.code = code
        for target, name in ((os, "write"), (os, "fsync"), (os, "open"), (Path, "mkdir"), (Path, "rename")):
            patch.setattr(target, name, self.counted(getattr(target, name)))

    def counted(self, call: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            reads = call is OPEN and not args[1] & os.O_CREAT  # which a full disk allows
            self.left -= not reads
            if self.left < 0 and not reads:
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **kwargs)

        return counting


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_at_any_call_leaves_nothing_behind(store: DatasetStore, tmp_path: Path, code: int) -> None:
    num_failures = 0
    codes = set()
    while True:
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, code)
            disk.left = num_failures
            try:
                keep(store)
                break
            except StorageError as error:
                codes.add(error.code)
            disk.left = 1_000_000
        left = files(tmp_path)
        assert left == set() or left == COMPLETE, (num_failures, left)
        if left:  # the last sync failed, and with it the way back: only the same content finds it
            assert store.path(SHA256).read_bytes() == CONTENT
            with store.locked():
                store.remove(SHA256)
        num_failures += 1
    assert num_failures > 10
    assert codes == {"storage_error" if code == errno.EIO else "disk_full"}
    assert files(tmp_path) == COMPLETE


def test_each_process_waits_for_its_turn(store: DatasetStore, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mini_claude.data.dataset_store import DatasetStore\n"
        "print('waiting', flush=True)\n"
        "with DatasetStore(Path(sys.argv[1]), 100, 100).locked(): print('mine', flush=True)"
    )
    with store.locked():
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "datasets")], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"waiting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
    assert child.stdout.readline() == b"mine\n"
    assert child.wait() == 0
    child.stdout.close()


def test_the_folder_of_the_store_is_ours_alone(store: DatasetStore, tmp_path: Path) -> None:
    keep(store)
    assert (tmp_path / "datasets").stat().st_mode & 0o077 == 0
