"""Where the processes of one data directory meet: socket paths and lock files.

A Unix socket's path holds about 107 bytes at most, and data directories can be deep, so a long one is replaced by
a short private folder under the system's temporary directory, named after a hash of the data directory.
"""

import hashlib
import os
import secrets
import tempfile
from pathlib import Path

from mini_claude.errors import StorageError

MAX_SOCKET_PATH = 100  # bytes; the smallest limit among supported systems is 104 (macOS)
LONGEST_SOCKET_NAME = len("/engine-0123456789abcdef.sock")


def runtime_dir(data_dir: Path) -> Path:
    """The folder of sockets and locks, made with mode 0700. Raises `StorageError` when another user owns it."""
    data_dir = data_dir.expanduser().resolve()
    folder = data_dir / "run"
    if len(os.fsencode(folder)) + LONGEST_SOCKET_NAME > MAX_SOCKET_PATH:
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"mini-claude-{os.getuid()}-{digest}"
        if len(os.fsencode(folder)) + LONGEST_SOCKET_NAME > MAX_SOCKET_PATH:  # macOS has a long one for each user
            folder = Path("/tmp") / folder.name  # noqa: S108
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The data directory {data_dir} cannot be used: {error.strerror}. "
            "Set MINI_CLAUDE_DATA_DIR to a folder that you may write to."
        ) from error
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise StorageError(f"{folder} belongs to another user; remove it or choose another data_dir.")
    folder.chmod(0o700)
    return folder


def supervisor_address(data_dir: Path) -> str:
    """Where the supervisor of this data directory listens."""
    return str(runtime_dir(data_dir) / "supervisor.sock")


def supervisor_lock(data_dir: Path) -> Path:
    """Held (flock) by the supervisor for all its life: whoever can take it knows that there is none."""
    return runtime_dir(data_dir) / "supervisor.lock"


def start_lock(data_dir: Path) -> Path:
    """Held by the worker that is starting a supervisor, so that only one does."""
    return runtime_dir(data_dir) / "supervisor.start.lock"


def page_socket(data_dir: Path) -> Path:
    """Where the page's process serves HTTP to the workers."""
    return runtime_dir(data_dir) / "page.sock"


def new_engine_address(data_dir: Path) -> str:
    """A fresh address for one engine process; never reused, so a stale one can only fail."""
    return str(runtime_dir(data_dir) / f"engine-{secrets.token_hex(8)}.sock")
