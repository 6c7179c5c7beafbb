"""The files of datasets: `<sha256>/data.<suffix>` with a `manifest.json`, complete or not there at all.

What arrives is written to a hidden folder beside them, which becomes `<sha256>` in one step. That folder's file is
locked as long as its writer lives, so that the next one can tell what a killed process left behind. Names that clients
send never come here: a path is made of a hash that we computed and a suffix out of a fixed list.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import NotFound, PayloadTooLarge, StorageError
from mini_claude.training.dataset_files import KNOWN_SUFFIXES, SUFFIXES

_INCOMING: Final = ".incoming-"
_MANIFEST: Final = "manifest.json"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class IncomingDataset:
    """A file on its way in. Blocking, and for one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.num_bytes = 0
        self._folder = folder
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self.path = folder / "data"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: bytes | bytearray) -> None:
        """Append. Raises `PayloadTooLarge` and `StorageError`."""
        self.num_bytes += len(data)
        if self.num_bytes > self._max_bytes:
            raise PayloadTooLarge(
                f"The file is larger than {self._max_bytes} bytes (max_dataset_bytes): split it.", param="file"
            )
        self._hash.update(data)
        left = memoryview(data)
        with _storage_errors(self._folder.parent):
            while left:
                left = left[os.write(self._file, left) :]

    def finish(self, suffix: str) -> str:
        """Bring all of it to the disk, as a file with this suffix where that is a known one; the content's hash."""
        path = self._folder / f"data{suffix if suffix in KNOWN_SUFFIXES else '.unknown'}"
        with _storage_errors(self._folder.parent):
            os.fsync(self._file)
            self.path.rename(path)
        self.path = path
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Leave nothing behind; does nothing to what was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._file)


class DatasetStore:
    """All files of one data directory. `quota_bytes` bounds what is kept, `max_bytes` each file."""

    def __init__(self, folder: Path, max_bytes: int, quota_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._quota_bytes = quota_bytes

    def path(self, sha256: str) -> Path:
        """The file with this content. Raises `NotFound`."""
        container = (self.manifest(sha256) or {}).get("container")
        if container not in SUFFIXES:
            raise NotFound("The dataset's file is gone; upload it again.", code="dataset_file_missing")
        return self._content(sha256) / f"data{SUFFIXES[container]}"

    def manifest(self, sha256: str) -> dict[str, Any] | None:
        """What was stored with this content; None where it is not here."""
        try:
            manifest: dict[str, Any] = json.loads((self._content(sha256) / _MANIFEST).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return manifest

    def begin(self) -> IncomingDataset:
        """A new file, to be discarded by the caller in the end, whatever became of it."""
        with self.locked(), _storage_errors(self._folder):
            self._sweep()
            folder = self._folder / f"{_INCOMING}{uuid.uuid4().hex}"
            try:
                folder.mkdir(0o700)
                return IncomingDataset(folder, self._max_bytes)
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def check_quota(self, num_bytes: int) -> None:
        """Raise `PayloadTooLarge` where all datasets together would have so many bytes."""
        if num_bytes > self._quota_bytes:
            raise PayloadTooLarge(
                f"All datasets together may have {self._quota_bytes} bytes (dataset_quota_bytes), and this one would "
                f"make it {num_bytes}: delete some first.",
                code="dataset_quota_exceeded",
                param="file",
            )

    @contextmanager
    def kept(self, incoming: IncomingDataset, manifest: dict[str, Any]) -> Iterator[None]:
        """Keep a finished file under its hash; taken back when the block raises, unless it was here before.

        Only under `locked`. `manifest` has at least `sha256` and `container`.
        """
        target = self._content(manifest["sha256"])
        if self.manifest(manifest["sha256"]) is not None:
            yield
            return
        with _storage_errors(self._folder):
            incoming.path.rename(incoming.path.with_name(f"data{SUFFIXES[manifest['container']]}"))
            _write(incoming.path.with_name(_MANIFEST), json.dumps(manifest).encode())
            _sync(incoming.path.parent)
            shutil.rmtree(target, ignore_errors=True)  # without a manifest it is no dataset
            incoming.path.parent.rename(target)
        try:
            with _storage_errors(self._folder):
                _sync(self._folder)
            yield
        except BaseException:
            self.remove(manifest["sha256"])
            raise

    def remove(self, sha256: str) -> None:
        """Delete a content, in one step. Only under `locked`."""
        gone = self._folder / f"{_INCOMING}{uuid.uuid4().hex}"
        try:
            self._content(sha256).rename(gone)
        except OSError:  # nothing leads to it any more; the same content may come again and then finds it
            return
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time adds or removes; the lock goes with its process, however that ends."""
        with _storage_errors(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _content(self, sha256: str) -> Path:
        assert _SHA256.fullmatch(sha256), "a content is found by the hash that we computed"
        return self._folder / sha256

    def _sweep(self) -> None:
        """Remove what processes that were killed had begun to write."""
        for folder in self._folder.glob(f"{_INCOMING}*"):
            if not any(_is_locked(path) for path in folder.glob("data*")):
                shutil.rmtree(folder, ignore_errors=True)


def _is_locked(path: Path) -> bool:
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"The disk of {folder} is full; free some space, nothing that was stored is lost.", code="disk_full"
            ) from error
        raise StorageError(f"{folder} cannot be written: {error}. Mend its permissions or choose another.") from error
