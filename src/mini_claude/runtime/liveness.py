"""Is that process still there? A pid alone is reused by the system; pid and start time together are not."""

import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process for all time. `started` is when it began, by a clock that nobody sets (see `_started`)."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        """The process that has this pid now. Raises `psutil.NoSuchProcess`."""
        return cls(pid, _started(psutil.Process(pid)))

    @classmethod
    def own(cls) -> "ProcessIdentity":
        """This process."""
        return cls.of(os.getpid())

    def alive(self) -> bool:
        """True while exactly that process runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            return _started(process) == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def _started(process: psutil.Process) -> float:
    """Seconds from boot to the process's start on Linux, where the time of day is computed from them and changes
    whenever somebody sets the clock; elsewhere the stored time of day."""
    return round(process.create_time() - (psutil.boot_time() if psutil.LINUX else 0.0), 2)


def terminate_with_multiprocessing_parent() -> None:
    """Where a parent process started us through multiprocessing (uvicorn's --workers and --reload do), end as by
    SIGTERM once it is gone: after a kill -9 of it nobody else would tell us."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, args=(parent.sentinel,), name="parent-watch", daemon=True).start()


def rss_bytes(pid: int) -> int | None:
    """Resident memory, or None when the process is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return None


def end_with_parent(end: Callable[[], None]) -> None:
    """Call `end` once the parent is gone, however it went.

    The parent holds the write end of our standard input. The kernel closes it when the parent dies, also by
    kill -9, and the read below returns: no polling, and it works on every Unix.
    """

    stdin = sys.stdin.fileno()

    def watch() -> None:
        while os.read(stdin, 4096):  # not sys.stdin.buffer: its lock would block the interpreter's exit
            pass
        end()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
