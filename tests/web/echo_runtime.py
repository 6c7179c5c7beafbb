"""A `Runtime` inside the test's process: the echo engine behind the real protocol, with a valve for its events."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from mini_claude.engine.echo_engine import EchoEngine
from mini_claude.errors import EngineDied, MiniClaudeError, ModelLoadError, NotFound
from mini_claude.models.echo_model import EchoModel
from mini_claude.runtime.messages import (
    Accepted,
    Fact,
    ReplyEvent,
    RequestServed,
    RuntimeStatus,
    StartChat,
    StartCompletion,
)
from mini_claude.runtime.preparation import prepare
from mini_claude.types import EngineStats, GenerationRequest, LoadOptions, ModelInfo, ModelSpec

UNLOADABLE = "dialogpt-large"  # loading this catalog entry fails


class EchoReply:
    """One listener of a recorded reply."""

    def __init__(self, runtime: "EchoRuntime", log: "EchoLog", after: int) -> None:
        self.accepted = log.accepted
        self._runtime = runtime
        self._log = log
        self._next = after

    async def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        while True:
            async with self._log.news:
                await self._log.news.wait_for(lambda: len(self._log.events) > self._next or self._log.error)
            if self._next >= len(self._log.events):
                assert self._log.error is not None
                raise self._log.error
            event = self._log.events[self._next]
            self._next += 1
            yield event
            if event.delta.finish_reason is not None:
                return

    def abort(self) -> None:
        self._runtime.engine.abort(self.accepted.request_id)
        self._runtime.valve.set()

    async def aclose(self) -> None:
        self._runtime.closed.append(self.accepted.request_id)
        if not self._log.resumable:
            self.abort()


class EchoLog:
    """The events of one reply."""

    def __init__(self, accepted: Accepted, *, resumable: bool) -> None:
        self.accepted = accepted
        self.resumable = resumable
        self.events: list[ReplyEvent] = []
        self.error: MiniClaudeError | None = None
        self.news = asyncio.Condition()


class EchoRuntime:
    """See the module's docstring. After `pause_after` events a reply waits until `valve` is set."""

    def __init__(self, *, context_length: int = 2048, max_num_seqs: int = 32, max_waiting: int = 256) -> None:
        self.model = EchoModel(context_length=context_length)
        options = LoadOptions(engine="echo", max_num_seqs=max_num_seqs, max_waiting=max_waiting)
        self.engine = EchoEngine(self.model.codec, context_length, options)
        self.facts: list[Fact] = []
        self.requests: list[StartChat | StartCompletion] = []
        self.closed: list[str] = []
        self.loaded: dict[str, ModelInfo] = {}
        self.pause_after: int | None = None
        self.die_after: int | None = None
        self.valve = asyncio.Event()
        self.logs: dict[str, EchoLog] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.broken: MiniClaudeError | None = None  # raised by status and metrics

    async def load(self, spec: ModelSpec, options: LoadOptions, *, exact: bool = True) -> ModelInfo:
        if spec.name == UNLOADABLE:
            raise ModelLoadError("The file model.safetensors ends after 12 bytes: fetch it again.")
        info = ModelInfo(
            spec.name, "ready", engine="echo", context_length=self.model.context_length, dtype=options.dtype
        )
        self.loaded[spec.name] = info
        return info

    async def unload(self, name: str) -> None:
        if self.loaded.pop(name, None) is None:
            raise NotFound(f"The model {name!r} is not loaded.", param="model")

    async def status(self) -> RuntimeStatus:
        if self.broken is not None:
            raise self.broken
        return RuntimeStatus(tuple(self.loaded.values()), (), {})

    async def metrics(self) -> str:
        if self.broken is not None:
            raise self.broken
        return "# TYPE requests_total counter\nrequests_total 1\n"

    async def start(self, spec: ModelSpec, options: LoadOptions, request: StartChat | StartCompletion) -> EchoReply:
        await self.load(spec, options)
        prepared = prepare(self.model, request)
        work = replace(prepared.request, params=replace(prepared.request.params, stop_token_ids=()), adapter=None)
        self.engine.check(work)
        self.requests.append(request)
        num_tokens = len(work.prompt_token_ids)
        accepted = Accepted(request.request_id, num_tokens, prepared.dropped_messages, prepared.prompt)
        resumable = isinstance(request, StartChat) and request.resumable
        log = EchoLog(accepted, resumable=resumable)
        self.logs[request.request_id] = log
        task = asyncio.create_task(self._generate(log, work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await asyncio.sleep(0)  # as in a real engine, the request is in the queue when it is accepted
        return EchoReply(self, log, 0)

    async def _generate(self, log: EchoLog, work: GenerationRequest) -> None:
        try:
            async for delta in self.engine.generate(work):
                if len(log.events) == self.pause_after and delta.finish_reason != "abort":
                    await self.valve.wait()
                async with log.news:
                    log.events.append(ReplyEvent(work.request_id, len(log.events) + 1, delta))
                    log.news.notify_all()
                if len(log.events) == self.die_after:
                    raise EngineDied("The engine process ended while this reply was being written; ask again.")
        except MiniClaudeError as error:
            async with log.news:
                log.error = error
                log.news.notify_all()

    async def attach(self, spec: ModelSpec, options: LoadOptions, request_id: str, after: int) -> EchoReply:
        if request_id not in self.logs:
            raise NotFound("No such reply.", code="reply_not_found", param="reply_id")
        return EchoReply(self, self.logs[request_id], after)

    def publish(self, *facts: Fact) -> None:
        self.facts.extend(facts)

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def routes(self) -> set[str]:
        """The route labels that were published."""
        return {fact.route for fact in self.facts if isinstance(fact, RequestServed)}
