"""Two answers to one question that are written at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from mini_claude.errors import MiniClaudeError
from mini_claude.runtime.runtime import ReplyStream
from mini_claude.services.chat import ChatService
from mini_claude.services.identity import Caller
from mini_claude.types import FinishReason, Message, SamplingParams

FRAME_SECONDS: Final = 0.06  # between two looks at answers that are being written


@dataclass(frozen=True, slots=True)
class Contestant:
    """What answers: a model, or an adapter with its version, and how it chooses its words."""

    name: str
    params: SamplingParams


@dataclass(slots=True)
class RunningAnswer:
    """An answer as far as it has come. `error` says why it ended when it did not end well."""

    stream: ReplyStream
    text: str = ""
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the model itself ended it, or its longest length did."""
        return self.finish_reason in ("stop", "length")

    async def read(self) -> None:
        """To the end."""
        try:
            async for event in self.stream:
                self.text += event.delta.text
                self.num_tokens += len(event.delta.token_ids)
                self.finish_reason = event.delta.finish_reason
        except MiniClaudeError as error:
            self.error = error.message


@dataclass(slots=True)
class Race:
    """Begun by `start_race`; iterate for frames: something may have changed since the one before."""

    answers: tuple[RunningAnswer, ...]
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aiter__(self) -> AsyncIterator[None]:
        pending = self._tasks = {asyncio.create_task(answer.read()) for answer in self.answers}
        try:
            while pending:
                _, pending = await asyncio.wait(pending, timeout=FRAME_SECONDS)
                yield
        finally:
            for task in self._tasks:
                task.cancel()
            for answer in self.answers:
                await answer.stream.aclose()

    def abort(self) -> None:
        """End both answers within one step of their engines."""
        for answer in self.answers:
            answer.stream.abort()


async def start_race(
    chat: ChatService, caller: Caller, contestants: Sequence[Contestant], messages: Sequence[Message]
) -> Race:
    """Ask all of them, loading what is not loaded. Raises the first error of what `ChatService.reply` raises."""
    asked = [asyncio.create_task(chat.reply(caller, each.name, messages, each.params)) for each in contestants]
    try:
        return Race(tuple(RunningAnswer(stream) for stream in await asyncio.gather(*asked)))
    except BaseException:
        await asyncio.shield(_close_all(asked))
        raise


async def _close_all(asked: Sequence[asyncio.Task[ReplyStream]]) -> None:
    for task in asked:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, MiniClaudeError):  # the first error was raised already
            await (await task).aclose()
