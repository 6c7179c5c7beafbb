"""What everything that writes to the disk shares: how it tells what went wrong, and how it makes sure of the rest."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_claude.errors import StorageError


def is_full(error: OSError) -> bool:
    """Whether there was no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` about this file or folder, code "disk_full" where there was no room."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StorageError(
                f"The disk of {path} is full; free some space and try again, nothing that was stored is lost.",
                code="disk_full",
            ) from error
        raise StorageError(f"{path} cannot be written: {error}. Mend its permissions or choose another.") from error


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
