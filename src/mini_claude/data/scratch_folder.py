"""Folders that belong to one process and go with it: what a killed process had begun to write is found and removed.

A scratch folder lies, hidden, beside what it may become, and is locked as long as its process lives.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mini_claude.utils.files import storage_errors

_PREFIX: Final = ".incoming-"


class ScratchFolder:
    """A new folder in `parent`, which exists. To be discarded in the end, whatever became of it.

    Made only while the parent is `locked`. Raises `OSError`.
    """

    def __init__(self, parent: Path) -> None:
        self.path = parent / f"{_PREFIX}{uuid.uuid4().hex}"
        self.path.mkdir(0o700)
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def discard(self) -> None:
        """Leave nothing behind; does nothing to a folder that has been renamed."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_folder(folder: Path) -> None:
    """Delete a folder, for everybody else in one step: a process that is killed meanwhile leaves a scratch folder.

    Raises `OSError` where there is none.
    """
    gone = folder.with_name(f"{_PREFIX}{uuid.uuid4().hex}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the scratch folders of processes that are gone. Only while the parent is `locked`."""
    for folder in parent.glob(f"{_PREFIX}*"):
        if not _is_locked(folder):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time works on what `folder`, made if need be, holds; the lock goes with its process.

    Raises `StorageError`.
    """
    with storage_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_locked(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its owner has just discarded or renamed it
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
