"""Tells the metrics how each reply went."""

import time

from mini_claude.runtime.messages import ReplyEvent, ReplyFinished
from mini_claude.runtime.runtime import ReplyStream, Runtime
from mini_claude.services.wrapped_reply import WrappedReply
from mini_claude.types import Usage


class MeteredReply(WrappedReply):
    """Publishes one `ReplyFinished` however the reply ends.

    `started` is `time.perf_counter()` when the caller asked, so that loading and queueing count as waiting.
    """

    def __init__(self, stream: ReplyStream, runtime: Runtime, model: str, started: float) -> None:
        super().__init__(stream)
        self._runtime = runtime
        self._model = model
        self._started = started
        self._first_token_seconds: float | None = None
        self._completion_tokens = 0
        self._published = False

    async def __anext__(self) -> ReplyEvent:
        try:
            event = await anext(self._events)
        except Exception:
            self._publish("error", None)  # nothing is left to say when the stream had ended in good order
            raise
        delta = event.delta
        self._completion_tokens += len(delta.token_ids)
        if delta.token_ids and self._first_token_seconds is None:
            self._first_token_seconds = time.perf_counter() - self._started
        if delta.finish_reason is not None:
            self._publish(delta.finish_reason, delta.usage)
        return event

    async def aclose(self) -> None:
        """As `ReplyStream.aclose`; a reply that is left before its end counts as aborted."""
        self._publish("abort", None)
        await self._stream.aclose()

    def _publish(self, finish_reason: str, usage: Usage | None) -> None:
        if self._published:
            return
        self._published = True
        usage = usage or Usage(self.accepted.prompt_tokens, self._completion_tokens)
        self._runtime.publish(
            ReplyFinished(
                model=self._model,
                finish_reason=finish_reason,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                seconds=time.perf_counter() - self._started,
                first_token_seconds=self._first_token_seconds,
            )
        )
