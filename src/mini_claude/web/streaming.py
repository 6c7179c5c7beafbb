"""Replies on their way out: server-sent events, pings, several replies at once, and clients that hang up.

Whoever consumes a reply here closes it, also when nobody is left to read it: closing is what makes the engine stop.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mini_claude.errors import Unavailable
from mini_claude.runtime.messages import ReplyEvent
from mini_claude.types import FinishReason, TokenLogprob, Usage

T = TypeVar("T")
_to_json = msgspec.json.Encoder().encode  # six times as fast as the standard library's
_to_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
PING: Final = b": ping\n\n"
MERGE_QUEUE: Final = 64  # events between the replies of one request and their client


class Reply(Protocol):
    """What stateless and session replies have in common."""

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        """Events in order; the last one has a finish_reason."""
        ...

    async def aclose(self) -> None:
        """Stop listening."""
        ...


@dataclass(frozen=True, slots=True)
class FinishedReply:
    """A whole reply. `logprobs` is None unless they were asked for."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None


def frame(data: object, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = b"event: %b\n" % event.encode() if event else b""
    return b"%bdata: %b\n\n" % (name, ascii_json(data))


def ascii_json(data: object) -> bytes:
    """For an event. ASCII only: some clients split lines at U+2028 or U+0085, which JSON may hold bare."""
    text = _to_json(data)
    return text if text.isascii() else _to_ascii(data).encode()


def interrupted() -> Unavailable:
    """The error for a reply that the server, not its client, cut off."""
    return Unavailable("The server stopped this reply before its end: ask again.", code="reply_aborted")


def shutting_down() -> Unavailable:
    """The error for what is cut off when the server has to end."""
    return Unavailable("The server is shutting down: ask again in a moment.", code="shutting_down", retry_after=5.0)


async def collect(reply: Reply) -> FinishedReply:
    """Read a reply to its end. Raises what reading it raises."""
    texts: list[str] = []
    logprobs: list[TokenLogprob] | None = None
    async for event in reply:
        delta = event.delta
        texts.append(delta.text)
        if delta.logprobs is not None:
            logprobs = [*(logprobs or ()), *delta.logprobs]
        if delta.finish_reason is not None:
            usage = delta.usage or Usage(0, 0)
            return FinishedReply("".join(texts), delta.finish_reason, usage, tuple(logprobs) if logprobs else None)
    raise interrupted()


async def collect_all(replies: Sequence[Reply]) -> list[FinishedReply]:
    """Read replies side by side; the first error ends it and is raised."""
    tasks = [asyncio.create_task(collect(reply)) for reply in replies]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel_all(tasks)


async def merge(replies: Sequence[Reply]) -> AsyncGenerator[tuple[int, ReplyEvent], None]:
    """Events of all replies as they come, each with its reply's index; the first error ends it."""
    if len(replies) == 1:  # nothing to merge, and a task and a queue less for every token
        async for event in replies[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, ReplyEvent] | Exception | None] = asyncio.Queue(MERGE_QUEUE)

    async def pump(index: int, reply: Reply) -> None:
        try:
            async for event in reply:
                await queue.put((index, event))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    pumps = [asyncio.create_task(pump(index, reply)) for index, reply in enumerate(replies)]
    num_open = len(pumps)
    try:
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        await cancel_all(pumps)


async def closing_on_error(reply: Reply, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; the reply is closed when it fails or is cancelled, since nobody will read it then."""
    try:
        return await work
    except BaseException:
        await reply.aclose()
        raise


async def cancel_all(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def hung_up(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        continue


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up; raises `ClientDisconnect` then."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(hung_up(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await cancel_all((task, gone))


class LastFrames(bytes):
    """After these comes nothing: they leave together with the end of the answer. Each piece costs the system as much as
    a token does."""


class EventStream(Response):
    """A response of server-sent events, with further `headers`.

    Writes a comment after `ping_seconds` of silence, so that proxies keep the line open. Ends when `frames` ends, whose
    last are `LastFrames`, the client hangs up, or the server's deadline for shutting down has passed (`last_words` is
    sent then); in every case `close` is awaited before the response is over.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[], Awaitable[None]],
        ping_seconds: float,
        last_words: bytes,
        headers: Mapping[str, str],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._close = close
        self._ping_seconds = ping_seconds
        self._last_words = last_words
        self._is_sending = False  # or waiting until somebody takes more
        self._last_sent = time.monotonic()
        # no-transform and x-accel-buffering keep proxies from holding frames back
        self.init_headers({"cache-control": "no-store, no-transform", "x-accel-buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the client stays for."""
        del scope
        tasks: list[asyncio.Task[None]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            write = asyncio.create_task(self._write(send))
            gone = asyncio.create_task(hung_up(receive))
            tasks = [write, gone, asyncio.create_task(self._ping(send))]
            await asyncio.wait({write, gone}, return_when=asyncio.FIRST_COMPLETED)
            if write.done():
                write.result()
        except asyncio.CancelledError:
            await cancel_all(tasks)
            await self._send(send, self._last_words, more=False)
            raise
        finally:
            await cancel_all(tasks)
            await self._frames.aclose()
            await self._close()

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._is_sending = False
        self._last_sent = time.monotonic()

    async def _write(self, send: Send) -> None:
        async for part in self._frames:
            await self._send(send, part, more=not isinstance(part, LastFrames))

    async def _ping(self, send: Send) -> None:
        wait = self._ping_seconds
        while True:
            await asyncio.sleep(wait)
            left = self._last_sent + self._ping_seconds - time.monotonic()
            if left <= 0 and not self._is_sending:
                await self._send(send, PING, more=True)
            wait = left if left > 0 else self._ping_seconds
