"""A worker's line to the supervisor: find it, start it where there is none, call it."""

import asyncio
import contextlib
import fcntl
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import msgspec

from mini_claude.errors import Unavailable, from_info
from mini_claude.runtime import sockets
from mini_claude.runtime.connection import Connection, connect
from mini_claude.runtime.launches import SupervisorLaunch
from mini_claude.runtime.liveness import ProcessIdentity
from mini_claude.runtime.messages import (
    Answer,
    CallFailed,
    ClientRole,
    Codec,
    Ending,
    Envelope,
    Hello,
    SupervisorInbound,
    SupervisorOutbound,
)
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

HELLO_SECONDS = 30.0  # a supervisor takes about a second to start
START_ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.2  # between them, doubled each time: one that is about to end needs a moment


class SupervisorConnection:
    """Numbered calls over one connection. A supervisor that dies fails the calls that wait for it."""

    def __init__(self) -> None:
        """Made by `open`."""
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[SupervisorOutbound]] = {}
        self._end = asyncio.Event()
        self.ended_on_purpose = False  # it said that it would end, so no other has to take its place
        self._connection: Connection

    @classmethod
    async def open(cls, address: str) -> Self:
        """A line to the supervisor that listens there. Raises `OSError` where none does."""
        supervisor = cls()
        supervisor._connection = await connect(address, supervisor._receive, supervisor._closed)
        return supervisor

    @property
    def closed(self) -> bool:
        """True once the supervisor is gone."""
        return self._connection.closed

    async def wait_closed(self) -> None:
        """Until the supervisor is gone, or `aclose` was called."""
        await self._end.wait()

    async def call(self, body: SupervisorInbound) -> SupervisorOutbound:
        """Send and wait for the answer; raises the error that the supervisor answered with."""
        if self.closed:
            raise _gone()
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        self._connection.send(Codec.encode(Envelope(number, body)))
        try:
            answer: SupervisorOutbound = await future
        finally:
            del self._calls[number]
        if isinstance(answer, CallFailed):
            raise from_info(answer.error, answer.kind)
        return answer

    def post(self, body: SupervisorInbound) -> None:
        """Send without expecting an answer."""
        self._connection.send(Codec.encode(Envelope(0, body)))

    async def aclose(self) -> None:
        """Close the line, once what was sent has gone."""
        await self._connection.aclose()

    def _receive(self, _connection: Connection, frame: bytes) -> None:
        answer: Answer = Codec.decode_answer(frame)
        if isinstance(answer.body, Ending):
            self.ended_on_purpose = True
        future = self._calls.get(answer.call_id)
        if future is not None and not future.done():
            future.set_result(answer.body)

    def _closed(self, _connection: Connection) -> None:
        self._end.set()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(_gone())


def _gone() -> Unavailable:
    return Unavailable("The supervisor process ended; another one is being started.", retry_after=2.0)


async def connect_supervisor(
    settings: Settings, identity: ProcessIdentity, role: ClientRole = "worker"
) -> SupervisorConnection:
    """Connect to this data directory's supervisor, starting one where none runs, and say hello.

    Raises `Unavailable` when none can be started, with the last line of its log.
    """
    address = sockets.supervisor_address(settings.data_dir)
    for attempt in range(START_ATTEMPTS):
        if attempt:
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        process = await asyncio.to_thread(_ensure_running, settings)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                return await _greeted(address, Hello(identity.pid, identity.started, role))
        except (OSError, Unavailable):  # it was just about to end, or has not come up; a timeout is an OSError too
            log.warning("supervisor.no_answer", exit_code=process.poll() if process else None)
    raise Unavailable(
        f"The supervisor does not start. Its log is in {settings.logs_dir}; "
        "`mini-claude config` shows the settings that it uses.",
        retry_after=10.0,
    )


async def _greeted(address: str, hello: Hello) -> SupervisorConnection:
    connection = await SupervisorConnection.open(address)
    try:
        await connection.call(hello)
    except BaseException:
        await connection.aclose()
        raise
    return connection


def _ensure_running(settings: Settings) -> "subprocess.Popen[bytes] | None":
    with _locked(sockets.start_lock(settings.data_dir)):
        if _is_locked(sockets.supervisor_lock(settings.data_dir)):
            return None
        return _spawn(settings)


def _spawn(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start a supervisor in a session of its own (Ctrl-C is for the worker) and wait until it holds its lock."""
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    with (settings.logs_dir / "supervisor.err").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "mini_claude.runtime.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    plain = settings.model_dump(mode="json", exclude={"database_url", "limits_url"})
    launch = SupervisorLaunch(plain, settings.effective_database_url, settings.plain_limits_url)
    process.stdin.write(msgspec.json.encode(launch))
    process.stdin.close()
    process.stdout.readline()  # one line once its lock is held and its socket bound, or end of file
    process.stdout.close()
    _reap(process)
    return process


def _reap(process: "subprocess.Popen[bytes]") -> None:
    threading.Thread(target=process.wait, name="supervisor-reaper", daemon=True).start()


def _is_locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
