"""Servers of other projects that tests start for themselves: found, started without rights, ended by their pid."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 30.0
END_SECONDS = 20.0


class OwnServer:
    """A server in a folder of its own. `command` starts it in the foreground; `answers` tells when it is up."""

    def __init__(self, folder: Path, command: Sequence[str | Path], answers: Callable[[], bool], signal: int) -> None:
        self.folder = folder
        self._command = command
        self._answers = answers
        self._signal = signal
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, user=user(), cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """Returns when it has ended; connections to it are cut."""
        if self._process is not None:
            self._process.send_signal(self._signal)
            self._process.wait(END_SECONDS)
            self._process = None


def user() -> str | None:
    """Whom to run as: PostgreSQL refuses root. None: as we are."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@contextmanager
def own_folder() -> Iterator[Path]:
    """Below no folder of pytest's, into which only root might look, and with a name short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="mc-") as name:
        if (name_of_user := user()) is not None:
            shutil.chown(name, name_of_user)
        yield Path(name)


def program(name: str, elsewhere: str = "") -> Path:
    """Where it is: on the path, or the newest that fits a pattern below /."""
    if (found := shutil.which(name)) is not None:
        return Path(found)
    others = list(Path("/").glob(elsewhere)) if elsewhere else []
    assert others, f"{name} is not installed: `make services` brings it"
    return max(others, key=lambda path: [int(part) for part in path.parts if part.isdigit()])


def takes_connections(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
