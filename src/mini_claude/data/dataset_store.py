"""The files of datasets: `<sha256>/data.<suffix>` with a `manifest.json`, complete or not there at all.

What arrives is written to a scratch folder beside them, which becomes `<sha256>` in one step. Names that clients send
never come here: a path is made of a hash that we computed and a suffix out of a fixed list.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from mini_claude.data.scratch_folder import ScratchFolder, locked, remove_abandoned, remove_folder
from mini_claude.errors import NotFound, PayloadTooLarge
from mini_claude.training.dataset_files import KNOWN_SUFFIXES, SUFFIXES
from mini_claude.utils.files import storage_errors, sync

_MANIFEST: Final = "manifest.json"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class IncomingDataset:
    """A file on its way in. Blocking, and for one thread at a time."""

    def __init__(self, scratch: ScratchFolder, max_bytes: int) -> None:
        self.num_bytes = 0
        self._scratch = scratch
        self._folder = scratch.path
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self.path = scratch.path / "data"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, data: bytes | bytearray) -> None:
        """Append. Raises `PayloadTooLarge` and `StorageError`."""
        self.num_bytes += len(data)
        if self.num_bytes > self._max_bytes:
            raise PayloadTooLarge(
                f"The file is larger than {self._max_bytes} bytes (max_dataset_bytes): split it.", param="file"
            )
        self._hash.update(data)
        left = memoryview(data)
        with storage_errors(self._folder.parent):
            while left:
                left = left[os.write(self._file, left) :]

    def finish(self, suffix: str) -> str:
        """Bring all of it to the disk, as a file with this suffix where that is a known one; the content's hash."""
        path = self._folder / f"data{suffix if suffix in KNOWN_SUFFIXES else '.unknown'}"
        with storage_errors(self._folder.parent):
            os.fsync(self._file)
            self.path.rename(path)
        self.path = path
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Leave nothing behind; does nothing to what was kept."""
        self._scratch.discard()
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
        with self.locked(), storage_errors(self._folder):
            remove_abandoned(self._folder)
            scratch = ScratchFolder(self._folder)
            try:
                return IncomingDataset(scratch, self._max_bytes)
            except OSError:
                scratch.discard()
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
        with storage_errors(self._folder):
            incoming.path.rename(incoming.path.with_name(f"data{SUFFIXES[manifest['container']]}"))
            _write(incoming.path.with_name(_MANIFEST), json.dumps(manifest).encode())
            sync(incoming.path.parent)
            shutil.rmtree(target, ignore_errors=True)  # without a manifest it is no dataset
            incoming.path.parent.rename(target)
        try:
            with storage_errors(self._folder):
                sync(self._folder)
            yield
        except BaseException:
            self.remove(manifest["sha256"])
            raise

    def remove(self, sha256: str) -> None:
        """Delete a content, in one step. Only under `locked`."""
        with suppress(OSError):  # nothing leads to it any more; the same content may come again and then finds it
            remove_folder(self._content(sha256))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time adds or removes; the lock goes with its process, however that ends."""
        with locked(self._folder):
            yield

    def _content(self, sha256: str) -> Path:
        assert _SHA256.fullmatch(sha256), "a content is found by the hash that we computed"
        return self._folder / sha256


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)
