"""A session's reply: recorded to its end whoever listens, and listened to from any event on.

`RunningReply` reads the engine's stream in a task of its own and stores the ending, so that a listener that goes away
or is slow loses nothing. `SessionReply` is one listener. Both share a `ReplyRecord`, which can also be filled from a
stored turn: a reply that ended long ago is listened to in the same way.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from msgspec import structs

from mini_claude.data.records import ReplyEnding, Turn
from mini_claude.errors import EngineDied, InternalError, MiniClaudeError, StorageError, Unavailable, from_info
from mini_claude.runtime.messages import ReplyEvent
from mini_claude.runtime.runtime import ReplyStream
from mini_claude.types import FinishReason, GenerationDelta, Usage
from mini_claude.utils.logging import get_logger

SAVE_SECONDS: Final = 10.0  # an aborted reply ends within one engine step; this is for a machine that thrashes
MAX_UNREAD_EVENTS: Final = 256
Save = Callable[[ReplyEnding], Awaitable[None]]
_log = get_logger(__name__)


class ReplyRecord:
    """The events of one reply so far, numbered from 1, and how it ended."""

    def __init__(self) -> None:
        self.events: list[ReplyEvent] = []
        self.ended = False
        self.error: MiniClaudeError | None = None
        self._news = asyncio.Event()

    def append(self, event: ReplyEvent) -> None:
        """Add the next event and wake the listeners."""
        self.events.append(event)
        self._wake()

    def end(self, error: MiniClaudeError | None) -> None:
        """Nothing comes after this; a second call changes nothing."""
        if not self.ended:
            self.ended, self.error = True, error
            self._wake()

    async def news(self) -> None:
        """Wait for the next `append` or `end`."""
        await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def stored_record(turn: Turn) -> ReplyRecord:
    """The record of a turn that has ended: the same event numbers and texts as it had live, without logprobs."""
    record = ReplyRecord()
    start = 0
    for number, end in enumerate(turn.delta_ends, 1):
        last = number == len(turn.delta_ends) and turn.status == "done"
        delta = GenerationDelta(turn.id, turn.content[start:end])
        if last:
            delta = structs.replace(delta, finish_reason=cast(FinishReason, turn.finish_reason), usage=turn.usage)
        record.append(ReplyEvent(turn.id, number, delta))
        start = end
    record.end(from_info(turn.error[1], turn.error[0]) if turn.error else None)
    return record


@dataclass(slots=True)
class Pace:
    """When a reply's first and its last event so far came, by `time.perf_counter()`, whoever read them when."""

    first_at: float
    last_at: float


class RunningReply:
    """Records a reply to its end, stores how it ended, and only then shows the end to the listeners.

    So whoever has seen the last event can go on from it: the turn is on the disk and the head has moved.
    """

    def __init__(self, stream: ReplyStream, turn: Turn, save: Save) -> None:
        self.turn = turn
        self.record = ReplyRecord()
        self.pace: Pace | None = None  # until the first event
        self._stream = stream
        self._save = save
        self._reader: SessionReply | None = None  # the listener without whom the reply is pointless
        self._num_before = 0  # events that were there when that listener came
        self.task = asyncio.create_task(self._run())

    def listen(self, after: int, *, needed: bool) -> "SessionReply":
        """Events after that number. When a `needed` listener goes away or stops reading, the reply is aborted."""
        listener = SessionReply(self.turn, self.record, after, running=self, needed=needed)
        if needed:
            self._reader = listener
            self._num_before = len(self.record.events)
        return listener

    def abort(self) -> None:
        """End the reply within one engine step; its last event still comes."""
        if not self.record.ended:
            self._stream.abort()

    async def saved(self) -> None:
        """Wait until the ending is stored, `SAVE_SECONDS` at most."""
        await asyncio.wait([self.task], timeout=SAVE_SECONDS)

    async def _run(self) -> None:
        try:
            await self._follow()
            self.record.end(None)
        except MiniClaudeError as error:
            self.record.end(error)
        finally:
            self.record.end(Unavailable("The server is shutting down; ask again in a moment."))  # when cancelled
            await self._stream.aclose()

    async def _follow(self) -> None:
        try:
            last = await self._record_until_last()
        except Exception as caught:
            error = caught if isinstance(caught, MiniClaudeError) else InternalError("The reply failed.")
            if error is not caught:
                _log.exception("reply_failed", reply_id=self.turn.id)
            await self._save_failure(error)
            raise error from caught
        await self._save(self._ending((*self.record.events, last)))
        self.record.append(last)

    async def _record_until_last(self) -> ReplyEvent:
        async for event in self._stream:
            now = time.perf_counter()
            if self.pace is None:
                self.pace = Pace(now, now)
            self.pace.last_at = now
            if event.delta.finish_reason is not None:
                return event
            self.record.append(event)
            if self._reader is not None:
                num_unread = len(self.record.events) - max(self._reader.num_read, self._num_before)
                if num_unread > MAX_UNREAD_EVENTS:
                    self._stream.abort()
        raise EngineDied("The reply broke off; ask again.")

    async def _save_failure(self, error: MiniClaudeError) -> None:
        ending = replace(self._ending(self.record.events), error=(type(error).__name__, error.info()))
        try:
            await self._save(ending)
        except StorageError as unsaved:
            _log.warning("reply_not_saved", reply_id=self.turn.id, reason=unsaved.message)

    def _ending(self, events: Sequence[ReplyEvent]) -> ReplyEnding:
        ends: list[int] = []
        for event in events:
            ends.append(len(event.delta.text) + (ends[-1] if ends else 0))
        text = "".join(event.delta.text for event in events)
        last = events[-1].delta if events else GenerationDelta(self.turn.id, "")
        usage = last.usage or Usage(
            self.turn.usage.prompt_tokens if self.turn.usage else 0,
            sum(len(event.delta.token_ids) for event in events),
        )
        return ReplyEnding(text, last.finish_reason or "error", usage, tuple(ends))


class SessionReply:
    """One listener's view of a session's reply: iterate for its events, the last one has a finish_reason.

    Iterating raises what ended the reply early (`EngineDied`, `InternalError`, ...), and `StorageError` in place of
    the last event when the ending could not be stored.
    """

    def __init__(
        self,
        turn: Turn,
        record: ReplyRecord,
        after: int = 0,
        *,
        running: RunningReply | None = None,
        needed: bool = False,
    ) -> None:
        self.session_id = turn.session_id
        self.user_turn_id = turn.parent_id or ""
        self.reply_id = turn.id
        self.dropped_turn_ids = turn.dropped_turn_ids
        self.prompt_tokens = turn.usage.prompt_tokens if turn.usage else 0
        self.model = turn.model or ""
        self.num_read = max(after, 0)
        self._record = record
        self._running = running
        self._needed = needed

    @property
    def pace(self) -> Pace | None:
        """None before the first event, and for a reply that is not being written here."""
        return None if self._running is None else self._running.pace

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        return self

    async def __anext__(self) -> ReplyEvent:
        while self.num_read >= len(self._record.events):
            if self._record.error is not None:
                raise self._record.error
            if self._record.ended:
                raise StopAsyncIteration
            await self._record.news()
        self.num_read += 1
        return self._record.events[self.num_read - 1]

    def abort(self) -> None:
        """End the reply within one engine step; a last event with finish_reason "abort" still comes."""
        if self._running is not None:
            self._running.abort()

    async def aclose(self) -> None:
        """Stop listening. A reply that nobody can resume is aborted and stored as far as it came."""
        if self._running is not None and self._needed:
            self._running.abort()
            await self._running.saved()
