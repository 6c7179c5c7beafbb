"""A worker's line to one engine process, and the replies that flow on it."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Self

from mini_claude.errors import EngineDied, MiniClaudeError, Unavailable, from_info
from mini_claude.runtime.connection import Connection, connect
from mini_claude.runtime.messages import (
    Abort,
    Accepted,
    Attach,
    Codec,
    Detach,
    EngineInbound,
    EngineReport,
    Failed,
    GetEngineStats,
    ReplyEvent,
    StartChat,
    StartCompletion,
)
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

MAX_UNREAD_EVENTS = 256  # safety.md, slow consumer


class EngineReply:
    """The `ReplyStream` of runtime.py over a connection. Made by `EngineConnection.start` and `.attach` only."""

    accepted: Accepted

    def __init__(self, connection: "EngineConnection", request_id: str, after: int, *, resumable: bool) -> None:
        self.request_id = request_id
        self.resumable = resumable
        self.acceptance: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._last_number = after
        self._unread: asyncio.Queue[ReplyEvent | MiniClaudeError] = asyncio.Queue()
        self.ended = False

    def deliver(self, event: ReplyEvent) -> None:
        """Take the event that follows the last one; a replay for another listener may repeat or run ahead."""
        if self.ended or event.number != self._last_number + 1:
            return
        self._last_number = event.number
        # A resumable reply may be replayed in one burst; its own length bounds it, and services bound live ones.
        if not self.resumable and self._unread.qsize() >= MAX_UNREAD_EVENTS:
            self.abort()
            self.fail(Unavailable("The reply was read too slowly and has been ended.", code="slow_consumer"))
            return
        self._unread.put_nowait(event)
        self.ended = event.delta.finish_reason is not None

    def fail(self, error: MiniClaudeError) -> None:
        """End the reply with an error, before or after its acceptance."""
        if self.ended:
            return
        self.ended = True
        if self.acceptance.done():
            self._unread.put_nowait(error)
        else:
            self.acceptance.set_exception(error)

    async def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        """Events in order; raises the error that ended the reply."""
        while True:
            event = await self._unread.get()
            if isinstance(event, MiniClaudeError):
                raise event
            yield event
            if event.delta.finish_reason is not None:
                return

    def abort(self) -> None:
        """End the reply within one engine step."""
        self._connection.send(Abort(self.request_id))

    async def aclose(self) -> None:
        """Stop listening; the engine aborts the reply when it is not resumable."""
        self._connection.forget(self)


class EngineConnection:
    """Multiplexes replies by request id. When the engine process dies every open reply gets `EngineDied`."""

    def __init__(self, model: str, address: str) -> None:
        """Made by `open`."""
        self.model = model
        self.address = address
        self.leaving = False  # it refused a request because its process is about to end
        self._report_numbers = itertools.count()
        self._replies: defaultdict[str, list[EngineReply]] = defaultdict(list)
        self._reports: dict[str, asyncio.Future[EngineReport]] = {}
        self._connection: Connection | None = None

    @classmethod
    async def open(cls, model: str, address: str) -> Self:
        """A line to the process that listens there, closed where none does. Raises `Unavailable`."""
        engine = cls(model, address)
        try:
            engine._connection = await connect(address, engine._receive, engine._closed)
        except (FileNotFoundError, ConnectionError):  # it has just ended
            return engine
        except OSError as error:  # too many open files, say
            raise Unavailable(
                f"The process that runs {model!r} cannot be reached: {error.strerror}.", retry_after=5.0
            ) from error
        return engine

    @property
    def closed(self) -> bool:
        """True once the engine process is gone."""
        return self._connection is None or self._connection.closed

    def send(self, message: EngineInbound) -> None:
        """Send without waiting."""
        if self._connection is not None:
            self._connection.send(Codec.encode(message))

    async def start(self, request: StartChat | StartCompletion) -> EngineReply:
        """Start a reply; returns when the engine has accepted it, raises what it refused it with."""
        resumable = isinstance(request, StartChat) and request.resumable
        return await self._open(EngineReply(self, request.request_id, 0, resumable=resumable), request)

    async def attach(self, request_id: str, after: int) -> EngineReply:
        """Listen to a resumable reply from event `after` + 1 on."""
        return await self._open(EngineReply(self, request_id, after, resumable=True), Attach(request_id, after))

    async def _open(self, reply: EngineReply, message: EngineInbound) -> EngineReply:
        if self.closed:
            raise self._died()
        self._replies[reply.request_id].append(reply)
        try:
            self.send(message)
            reply.accepted = await reply.acceptance
        except BaseException:
            self.forget(reply)  # also when the caller was cancelled: the engine must not go on alone
            raise
        return reply

    def forget(self, reply: EngineReply) -> None:
        """Remove a listener; the last one tells the engine, which aborts what is not resumable."""
        listeners = self._replies.get(reply.request_id, [])
        if reply not in listeners:
            return
        listeners.remove(reply)
        if not listeners:
            del self._replies[reply.request_id]
            if not reply.ended:
                self.send(Detach(reply.request_id))
        reply.ended = True

    async def report(self) -> EngineReport:
        """The engine's figures as of now."""
        if self.closed:
            raise self._died()
        call_id = f"report-{next(self._report_numbers)}"
        future = self._reports[call_id] = asyncio.get_running_loop().create_future()
        self.send(GetEngineStats(call_id))
        try:
            report: EngineReport = await future
            return report
        finally:
            del self._reports[call_id]

    async def aclose(self) -> None:
        """Leave; the engine aborts this worker's replies that are not resumable."""
        if self._connection is not None:
            await self._connection.aclose()

    def _receive(self, _connection: Connection, frame: bytes) -> None:
        message = Codec.decode_engine_outbound(frame)
        if isinstance(message, EngineReport):
            report = self._reports.get(message.request_id)
            if report is not None and not report.done():
                report.set_result(message)
            return
        for reply in list(self._replies.get(message.request_id, ())):
            match message:
                case Accepted():
                    if not reply.acceptance.done():
                        reply.acceptance.set_result(message)
                case ReplyEvent():
                    reply.deliver(message)
                case Failed(kind=kind, error=error):
                    reply.fail(from_info(error, kind))

    def _closed(self, _connection: Connection) -> None:
        for replies in list(self._replies.values()):
            for reply in list(replies):
                reply.fail(self._died())
        for report in self._reports.values():
            if not report.done():
                report.set_exception(self._died())

    def _died(self) -> EngineDied:
        return EngineDied(
            f"The process that runs {self.model!r} ended. It is being started again; please repeat the request.",
            retry_after=5.0,
        )
