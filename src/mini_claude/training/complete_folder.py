"""Files and folders that are complete or not there at all, whatever ends the process that writes them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_claude.errors import Conflict
from mini_claude.utils.files import storage_errors, sync


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes it when the block ends well, and goes away when it does not.

    Raises `Conflict` where `target` exists, `StorageError` (code "disk_full") when there is no room.
    """
    if target.exists():
        raise Conflict(f"{target} exists already; remove it or choose another folder.")
    part = _scratch(target)
    with storage_errors(target):
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir(parents=True)
        try:
            yield part
            for path in part.iterdir():
                sync(path)
            sync(part)
            part.rename(target)
            sync(target.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def complete_file(target: Path) -> Iterator[Path]:
    """A scratch path beside `target`; the file written there takes its place when the block ends well.

    Raises `StorageError` (code "disk_full") when there is no room.
    """
    part = _scratch(target)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            sync(part)
            part.replace(target)
            sync(target.parent)
        finally:
            part.unlink(missing_ok=True)


def _scratch(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")
