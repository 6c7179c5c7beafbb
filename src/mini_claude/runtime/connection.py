"""Frames between two processes over a Unix socket: four bytes of length, then so many bytes.

The kernel closes a process's sockets however it ended, also by kill -9. So the other end hears of it at once, and after
everything that had been sent before: callers never wait for a process that is gone.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

LENGTH_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 2**30  # whoever announces more does not speak this language
# A burst must not fill the queues of readers that are given no turn to empty them.
FRAMES_PER_TURN: Final = 64
LINGER_SECONDS: Final = 0.2  # at the end, for what was sent last

OnFrame = Callable[["Connection", bytes], None]
OnClosed = Callable[["Connection"], None]


class Connection(asyncio.Protocol):
    """One end. Made by `connect` and `Listener`.

    `on_frame` is given every frame that comes, in order. `on_closed` is called once, after the last frame, when the
    other end is gone or this one was closed.
    """

    def __init__(self, on_frame: OnFrame, on_closed: OnClosed) -> None:
        self.closed = False
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._unread = bytearray()
        self._next_turn: asyncio.Handle | None = None  # in which more of `_unread` is delivered; no reading until then
        self._paused = False
        self._transport: asyncio.Transport | None = None  # from `connection_made` on
        self._lost = asyncio.Event()  # the line is cut: nothing can be sent, and what came may still be undelivered

    def send(self, *frames: bytes) -> None:
        """Queue frames; those to a closed connection are dropped, `on_closed` has told the callers."""
        if not self.closed and not self._lost.is_set() and self._transport is not None:
            self._transport.write(b"".join([part for frame in frames for part in (_length(frame), frame)]))

    def close(self) -> None:
        """Take no more frames; what was sent still goes. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.close()
        self._on_closed(self)

    async def aclose(self) -> None:
        """Take no more frames, and wait until the other end has read what was sent, for LINGER_SECONDS at most.

        Until then the other end may write: an error there would throw away what it has not read yet.
        """
        if self._transport is None or self.closed or self._lost.is_set():
            self.close()
            return
        self.closed = True
        self._transport.write_eof()
        if self._paused:
            self._transport.resume_reading()
        self._on_closed(self)
        try:
            await asyncio.wait_for(self._lost.wait(), LINGER_SECONDS)
        except TimeoutError:
            self._transport.abort()

    # --- for asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The line is open."""
        self._transport = cast(asyncio.Transport, transport)
        if self.closed:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Some bytes are there."""
        if self.closed:
            return
        self._unread += data
        if self._next_turn is None:
            self._deliver()

    def connection_lost(self, _error: Exception | None) -> None:
        """The line is cut; frames that came before are still delivered."""
        self._lost.set()
        if self._next_turn is None:
            self.close()

    def _deliver(self) -> None:
        """Hand over what is whole, some frames a turn of the event loop."""
        self._next_turn = None
        start = num_frames = 0
        try:
            while not self.closed and (end := self._end_of_frame(start)) is not None:
                if num_frames == FRAMES_PER_TURN:
                    self._next_turn = asyncio.get_running_loop().call_soon(self._deliver)
                    break
                frame = bytes(memoryview(self._unread)[start + LENGTH_BYTES : end])
                start, num_frames = end, num_frames + 1
                self._on_frame(self, frame)
        except Exception:  # of ours: to read on would hide what was lost
            log.exception("frame.failed")
            self.close()
        del self._unread[:start]
        if self._lost.is_set():
            if self._next_turn is None:
                self.close()
        elif self._transport is not None and not self.closed and self._paused != (self._next_turn is not None):
            self._paused = not self._paused
            (self._transport.pause_reading if self._paused else self._transport.resume_reading)()

    def _end_of_frame(self, start: int) -> int | None:
        """Where the frame that begins there ends; None while some of it is missing."""
        begin = start + LENGTH_BYTES
        if len(self._unread) < begin:
            return None
        length = int.from_bytes(self._unread[start:begin], "big")
        if length > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {length} bytes")
        return begin + length if len(self._unread) >= begin + length else None


class Listener:
    """Takes connections at a Unix socket's path, of which every frame and every end is reported with its connection."""

    def __init__(self, path: str, on_frame: OnFrame, on_closed: OnClosed) -> None:
        self._path = path
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._stopped = False

    async def open(self) -> None:
        """From here on it can be connected to. A socket that a dead process left there is replaced."""
        self._server = await asyncio.get_running_loop().create_unix_server(self._accept, self._path)

    async def aclose(self) -> None:
        """Take no more connections and close those that there are, once what was sent has gone."""
        self._stop()
        await asyncio.gather(*(connection.aclose() for connection in list(self._connections)))

    def _stop(self) -> None:
        self._stopped = True
        if self._server is not None:
            self._server.close()
        Path(self._path).unlink(missing_ok=True)

    def _accept(self) -> Connection:
        connection = Connection(self._on_frame, self._left)
        if self._stopped:  # it was on its way
            connection.close()
        else:
            self._connections.add(connection)
        return connection

    def _left(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._on_closed(connection)


async def connect(path: str, on_frame: OnFrame, on_closed: OnClosed) -> Connection:
    """A connection to the process that listens there. Raises `OSError` where none does."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(lambda: Connection(on_frame, on_closed), path)
    return connection


def _length(frame: bytes) -> bytes:
    return len(frame).to_bytes(LENGTH_BYTES, "big")
