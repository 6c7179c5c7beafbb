"""The secret with which tokens are signed: a file of the data directory that only its owner may read.

It is in no backup: after a restore everybody signs in again. Several hosts behind one name need the same file.
"""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Final

from mini_claude.errors import StorageError
from mini_claude.utils.files import storage_errors

MIN_BYTES: Final = 32  # as many as HS256's hash has


def token_secret(data_dir: Path) -> bytes:
    """The secret, which the first call makes. Processes that start at once get the same. Raises `StorageError`."""
    path = data_dir / "token_secret"
    with storage_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _make(path)
        secret = path.read_bytes()
    if len(secret) < MIN_BYTES:
        raise StorageError(
            f"{path} holds fewer than {MIN_BYTES} bytes: delete it, then start again; everybody will have to sign in."
        )
    return secret


def _make(path: Path) -> None:
    """Write it under another name first: whoever finds the file finds it whole."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # of somebody who was killed
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(2 * MIN_BYTES))
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
