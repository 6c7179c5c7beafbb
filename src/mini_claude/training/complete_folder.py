"""Files and folders that are complete or not there at all, whatever ends the process that writes them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_claude.errors import Conflict, StorageError


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes it when the block ends well, and goes away when it does not.

    Raises `Conflict` where `target` exists, `StorageError` (code "disk_full") when there is no room.
    """
    if target.exists():
        raise Conflict(f"{target} exists already; remove it or choose another folder.")
    part = _scratch(target)
    with _storage_errors(target):
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir(parents=True)
        try:
            yield part
            for path in part.iterdir():
                _sync(path)
            _sync(part)
            part.rename(target)
            _sync(target.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def complete_file(target: Path) -> Iterator[Path]:
    """A scratch path beside `target`; the file written there takes its place when the block ends well.

    Raises `StorageError` (code "disk_full") when there is no room.
    """
    part = _scratch(target)
    with _storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            _sync(part)
            part.replace(target)
            _sync(target.parent)
        finally:
            part.unlink(missing_ok=True)


def _scratch(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"The disk of {target.parent} is full; free some space and try again.", code="disk_full"
            ) from error
        raise StorageError(f"{target} cannot be written: {error}.") from error
