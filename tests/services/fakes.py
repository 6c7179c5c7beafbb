"""A runtime without processes: an engine that echoes, word by word, under the control of the test."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from mini_claude.errors import MiniClaudeError, NotFound
from mini_claude.runtime.messages import (
    Accepted,
    Fact,
    ReplyEvent,
    ReplyFinished,
    RuntimeStatus,
    StartChat,
    StartCompletion,
)
from mini_claude.types import FinishReason, GenerationDelta, LoadOptions, ModelInfo, ModelSpec, Usage


@dataclass
class EngineReply:
    """What the engine keeps of one reply."""

    request: StartChat | StartCompletion
    accepted: Accepted
    events: list[ReplyEvent] = field(default_factory=list)
    error: MiniClaudeError | None = None
    aborted: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class FakeEngine:
    """One engine process, shared by the runtimes of all workers. A word is a token and an event.

    `gate` closed: replies stop before their word number `gate_at`, until the gate opens or they are aborted.
    """

    def __init__(self) -> None:
        self.replies: dict[str, EngineReply] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.gate_at = 1
        self.refusal: MiniClaudeError | None = None
        self.failure: tuple[int, MiniClaudeError] | None = None  # after so many words
        self.dropped_messages = 0
        self.answer: str | None = None  # else "echo: " and the last message

    def start(self, request: StartChat | StartCompletion) -> EngineReply:
        if self.refusal is not None:
            raise self.refusal
        prompt = request.prompt if isinstance(request, StartCompletion) else request.messages[-1].content
        accepted = Accepted(request.request_id, len(str(prompt).split()), self.dropped_messages)
        reply = self.replies[request.request_id] = EngineReply(request, accepted)
        words = (f"echo: {prompt}" if self.answer is None else self.answer).split()
        task = asyncio.create_task(self._generate(reply, [f"{word} " for word in words]))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return reply

    async def _generate(self, reply: EngineReply, words: list[str]) -> None:
        for index, word in enumerate(words):
            if self.failure is not None and index >= self.failure[0]:
                reply.error = self.failure[1]
                break
            if index >= self.gate_at:
                await self._gate_or_abort(reply)
            if reply.aborted:
                break
            await self._add(reply, word, None)
        else:
            await self._add(reply, "", "stop")
        if reply.aborted:
            await self._add(reply, "", "abort")
        async with reply.changed:
            reply.changed.notify_all()

    async def _gate_or_abort(self, reply: EngineReply) -> None:
        async with reply.changed:
            await reply.changed.wait_for(lambda: self.gate.is_set() or reply.aborted)

    async def open_gate(self) -> None:
        self.gate.set()
        for reply in self.replies.values():
            async with reply.changed:
                reply.changed.notify_all()

    async def _add(self, reply: EngineReply, text: str, finish_reason: FinishReason | None) -> None:
        request_id, number = reply.accepted.request_id, len(reply.events) + 1
        usage = Usage(reply.accepted.prompt_tokens, number - 1, 1) if finish_reason else None
        token_ids = (number,) if text else ()
        delta = GenerationDelta(request_id, text, token_ids, finish_reason=finish_reason, usage=usage)
        async with reply.changed:
            reply.events.append(ReplyEvent(request_id, number, delta))
            reply.changed.notify_all()
        await asyncio.sleep(0)

    def abort(self, reply: EngineReply) -> None:
        reply.aborted = True

        async def tell() -> None:
            async with reply.changed:
                reply.changed.notify_all()

        task = asyncio.create_task(tell())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def forget_everything(self) -> None:
        """As after a restart."""
        self.replies.clear()


class FakeStream:
    def __init__(self, engine: FakeEngine, reply: EngineReply, after: int) -> None:
        self.accepted = reply.accepted
        self._engine = engine
        self._reply = reply
        self.num_read = after

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        return self

    async def __anext__(self) -> ReplyEvent:
        reply = self._reply
        if self.num_read and reply.events[self.num_read - 1].delta.finish_reason is not None:
            raise StopAsyncIteration
        async with reply.changed:
            await reply.changed.wait_for(lambda: len(reply.events) > self.num_read or reply.error is not None)
        if len(reply.events) > self.num_read:
            self.num_read += 1
            return reply.events[self.num_read - 1]
        assert reply.error is not None
        raise reply.error

    def abort(self) -> None:
        self._engine.abort(self._reply)

    async def aclose(self) -> None:
        if isinstance(self._reply.request, StartCompletion) or not self._reply.request.resumable:
            self.abort()


class FakeRuntime:
    """One worker's `Runtime` on a shared engine."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.facts: list[Fact] = []
        self.models: dict[str, ModelInfo] = {}
        self.started: list[tuple[ModelSpec, StartChat | StartCompletion]] = []
        self.loaded_with: list[LoadOptions] = []
        self.start_gate = asyncio.Event()
        self.start_gate.set()
        self.start_called = asyncio.Event()
        self.streams: list[FakeStream] = []

    async def load(self, spec: ModelSpec, options: LoadOptions, *, exact: bool = True) -> ModelInfo:
        self.loaded_with.append(options)
        info = ModelInfo(spec.name, "ready", engine="echo", context_length=2048, memory_bytes=1)
        self.models[spec.name] = info
        return info

    async def unload(self, name: str) -> None:
        if self.models.pop(name, None) is None:
            raise NotFound(f"{name} is not loaded.")

    async def status(self) -> RuntimeStatus:
        return RuntimeStatus(tuple(self.models.values()), (), {})

    async def metrics(self) -> str:
        return ""

    async def start(self, spec: ModelSpec, options: LoadOptions, request: StartChat | StartCompletion) -> FakeStream:
        self.start_called.set()
        await self.start_gate.wait()
        self.started.append((spec, request))
        self.streams.append(FakeStream(self.engine, self.engine.start(request), 0))
        return self.streams[-1]

    async def attach(self, spec: ModelSpec, options: LoadOptions, request_id: str, after: int) -> FakeStream:
        reply = self.engine.replies.get(request_id)
        if reply is None:
            raise NotFound("The engine does not know this reply.")
        return FakeStream(self.engine, reply, after)

    def publish(self, *facts: Fact) -> None:
        self.facts.extend(facts)

    @property
    def finished(self) -> list[ReplyFinished]:
        return [fact for fact in self.facts if isinstance(fact, ReplyFinished)]

    def sent(self) -> list[tuple[str, str]]:
        """Role and content of the messages of the last chat request."""
        request = self.started[-1][1]
        assert isinstance(request, StartChat)
        return [(message.role, message.content) for message in request.messages]
