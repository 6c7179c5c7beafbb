"""Connections: uvicorn's, with the deadlines and bounds that it lacks before and after the application's part.

The application bounds what it reads (request_head.py, request_body.py, upload.py, json_socket.py). What never becomes a
request, and what nobody reads, it cannot see:

    a head that does not arrive       ends after HEAD_SECONDS, or beyond MAX_HEAD_BYTES
    trailers without end              end beyond MAX_HEAD_BYTES
    an answer that nobody takes       ends after WRITE_SECONDS in which the system took no more of it
    too many connections              the one that has owed its head the longest goes
    a WebSocket's pings, fragments    pings are not answered while nobody reads; MAX_FRAGMENTS a message

`mini-claude serve` uses these classes; a bare uvicorn does with `--http mini_claude.web.connections:HttpConnection
--ws mini_claude.web.connections:WebSocketConnection --limit-concurrency 2000`.
"""

import asyncio
import resource
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame

from mini_claude.utils.logging import get_logger
from mini_claude.web.request_head import MAX_HEAD_BYTES, TOO_LARGE, has_long_line, head_too_large

log = get_logger(__name__)

HEAD_SECONDS: Final = 10.0
WRITE_SECONDS: Final = 60.0
MAX_FRAGMENTS: Final = 1024  # of one WebSocket message
OTHER_FILES: Final = 1500  # open files of a worker besides its connections: lines to the page, database, logs


def allow_open_files(num_connections: int) -> None:
    """Raise this process's soft limit of open files so that so many connections fit, or log that they do not."""
    wanted = num_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("few_open_files", allowed=allowed, wanted=wanted, fix="raise `ulimit -n`, or lower max_connections")


class _WriteDeadline:
    """Cuts a connection whose peer takes nothing of what was written to it for WRITE_SECONDS."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0  # bytes that nobody had taken when the timer was started

    def start(self) -> None:
        """Count from now on; also where it counted already."""
        self.stop()
        self._left = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(WRITE_SECONDS, self._check)

    def stop(self) -> None:
        """All is well."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        left = self._transport.get_write_buffer_size()
        if left >= self._left > 0:
            self._transport.abort()
        elif left:
            self.start()


class HttpConnection(HttpToolsProtocol):
    """See the module's docstring."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limit_concurrency = None  # uvicorn's own 503 has no Retry-After: access.py answers instead
        self._head_timer: asyncio.TimerHandle | None = None  # set while a head is awaited
        self._num_unseen = 0  # bytes that came since the parser last made something of them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head; where there are too many connections, the longest wait ends."""
        super().connection_made(transport)
        self._writing = _WriteDeadline(transport, self.loop)
        limit = self.config.limit_concurrency
        if limit is not None and len(self.connections) > limit:
            self._make_room()
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Parse what came, as far as it makes sense."""
        self._num_unseen += len(data)
        super().data_received(data)
        if self._num_unseen > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self._head_timer is None:  # trailers, or what chunks are called
                self.transport.abort()
            else:
                self._refuse(431, TOO_LARGE)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._num_unseen = 0
        self._stop_waiting()
        if self.cycle is None or self.cycle.response_complete:
            self._writing.stop()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body is there."""
        self._num_unseen = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """The answer is written: wait for the next head, and for somebody to take the answer."""
        super().on_response_complete()
        if self.cycle.response_complete:  # else the next request was here already
            self._writing.start()
            self._await_head()

    def handle_websocket_upgrade(self) -> None:
        """Hand over to `WebSocketConnection`."""
        if head_too_large(self.url, self.headers) or has_long_line(self.url, self.headers):
            self._refuse(431, TOO_LARGE)
        else:
            super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._stop_waiting()
        self._writing.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More was written than is taken."""
        super().pause_writing()
        self._writing.start()

    def resume_writing(self) -> None:
        """Most of it was taken."""
        super().resume_writing()
        if self.cycle is not None and self.cycle.response_complete:
            self._writing.start()  # the rest has to go too
        else:
            self._writing.stop()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._num_unseen:
            self._refuse(408, f"The request's head did not arrive within {HEAD_SECONDS:.0f} s: send it faster.")
        else:
            self.transport.close()

    def _make_room(self) -> None:
        waiting = [each for each in self.connections if isinstance(each, HttpConnection) and each._head_timer]
        if waiting:
            min(waiting, key=lambda each: cast(asyncio.TimerHandle, each._head_timer).when()).transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        body = message.encode("ascii")
        head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()
        self._writing.start()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """See the module's docstring."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over from `HttpConnection`."""
        super().connection_made(transport)
        self._writing = _WriteDeadline(self.transport, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._writing.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More was written than is taken."""
        super().pause_writing()
        self._writing.start()

    def resume_writing(self) -> None:
        """Most of it was taken."""
        super().resume_writing()
        if self.transport.is_closing():
            self._writing.start()  # the rest has to go too
        else:
            self._writing.stop()

    def keepalive_timeout(self) -> None:
        """Nobody answers pings: close, also where nobody takes what was written before."""
        super().keepalive_timeout()
        self._writing.start()

    async def run_asgi(self) -> None:
        """Run the application, whose end is the connection's."""
        try:
            await super().run_asgi()
        finally:
            if not self.disconnected:
                self._writing.start()

    def handle_ping(self) -> None:
        """Answer, unless answers only pile up."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # thrown away

    def handle_cont(self, event: Frame) -> None:
        """Take one more fragment of a message."""
        if self.close_sent:
            return
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
        else:
            super().handle_cont(event)
