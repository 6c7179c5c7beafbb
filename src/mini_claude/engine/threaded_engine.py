"""An engine core as asyncio sees it: requests in, streams of deltas out, the model in a thread of its own.

The thread sleeps while there is nothing to do. It takes new requests and aborts from an inbox between two steps,
and hands the outputs of a step to the event loop in one call. Adapters are read from their files in other threads;
only putting what was read in place is left to the engine's thread, between two steps.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from msgspec import structs

from mini_claude.engine.admission import Crowd, check_request
from mini_claude.engine.engine_core import EngineCore, RequestFailure, StepModel, StepOutput
from mini_claude.engine.loaded_adapters import LoadedAdapters
from mini_claude.errors import Conflict, ModelLoadError, Unavailable
from mini_claude.models.base_model import TextCodec
from mini_claude.types import AdapterRef, EngineStats, GenerationDelta, GenerationRequest, LoadOptions
from mini_claude.utils.model_utils import reuse_freed_memory, trim_heap

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A request and where its outputs go."""

    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    queue: "asyncio.Queue[StepOutput]"


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _AddAdapter:
    adapter: AdapterRef
    weights: Any
    added: "Future[None]"


@dataclass(frozen=True, slots=True)
class _RemoveAdapter:
    adapter: AdapterRef


_Message = _Stream | _Abort | _AddAdapter | _RemoveAdapter


class ThreadedEngine:
    """Runs any `StepModel`. See `Engine` for the contract of its methods."""

    def __init__(
        self, make_model: Callable[[], StepModel], codec: TextCodec, context_length: int, options: LoadOptions
    ) -> None:
        """`make_model` is called in the engine's thread; what it raises is raised here."""
        self._options = options
        self._codec = codec
        self._crowd = Crowd(options)  # the event loop's side
        self._aborted: set[str] = set()  # request ids of them
        self._adapters = LoadedAdapters(self._load_adapter, lambda adapter: self._send(_RemoveAdapter(adapter)))
        self._streams: dict[str, _Stream] = {}  # the thread's side
        self._inbox: list[_Message] = []
        self._wake = threading.Condition()
        self._closed = False
        prepared: Future[tuple[StepModel, int]] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(prepared, make_model, context_length), name="engine", daemon=True
        )
        self._thread.start()
        self._model: StepModel | None
        self._model, self._context_length = prepared.result()

    @property
    def context_length(self) -> int:
        """The smaller of the model's context and the KV cache."""
        return self._context_length

    def check_room(self, owner: str) -> None:
        """See `Engine.check_room`."""
        self._crowd.check_room(owner)

    def check(self, request: GenerationRequest) -> None:
        """See `Engine.check`."""
        if self._closed:
            raise Unavailable("The model is being unloaded.")
        if request.request_id in self._crowd:
            raise Conflict(f"A request with the id {request.request_id!r} is running already.")
        check_request(request, self._context_length, self._codec.vocab_size)
        self.check_room(request.owner)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """See `Engine.generate`."""
        self.check(request)
        stream = _Stream(request, asyncio.get_running_loop(), asyncio.Queue())
        self._crowd.enter(request)
        try:
            async with nullcontext() if request.adapter is None else self._adapters.use(request.adapter):
                self._send(stream)
                if request.request_id in self._aborted:  # while its adapter was loaded
                    self.abort(request.request_id)
                ended = False
                try:
                    while not ended:
                        output = await stream.queue.get()
                        self._crowd.answered(request.request_id)
                        ended = isinstance(output, RequestFailure) or output.finish_reason is not None
                        if isinstance(output, RequestFailure):
                            raise output.error
                        yield output
                finally:
                    if not ended:
                        self.abort(request.request_id)
        finally:
            self._crowd.leave(request.request_id)
            self._aborted.discard(request.request_id)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """See `Engine.load_adapter`."""
        async with self._adapters.use(adapter):
            pass

    def remove_adapter(self, adapter: AdapterRef) -> None:
        """See `Engine.remove_adapter`."""
        self._adapters.remove(adapter)

    def abort(self, request_id: str) -> None:
        """See `Engine.abort`."""
        if request_id in self._crowd:
            self._aborted.add(request_id)
        self._send(_Abort(request_id))

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        with self._wake:
            num_new = sum(isinstance(message, _Stream) for message in self._inbox)
            return structs.replace(self._stats, waiting=self._stats.waiting + num_new)

    async def close(self) -> None:
        """See `Engine.close`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        self._model = None  # with its weights

    async def _load_adapter(self, adapter: AdapterRef) -> None:
        if self._model is None:
            raise Unavailable("The model is being unloaded.")
        weights = await asyncio.to_thread(self._model.read_adapter, Path(adapter.folder))
        added: Future[None] = Future()
        self._send(_AddAdapter(adapter, weights, added))
        await asyncio.wrap_future(added)

    def _send(self, message: _Message) -> None:
        """Raises `Unavailable` for what the thread will not see any more and somebody waits for."""
        with self._wake:
            if self._closed and isinstance(message, _Stream | _AddAdapter):
                raise Unavailable("The model is being unloaded.")
            self._inbox.append(message)
            self._wake.notify()

    def _run(
        self,
        prepared: "Future[tuple[StepModel, int]]",
        make_model: Callable[[], StepModel],
        context_length: int,
    ) -> None:
        """The engine thread: make the model, then inbox, step, deliver, until closed."""
        try:
            model = make_model()
            core = EngineCore(model, self._codec, context_length, self._options)
        except Exception as error:
            prepared.set_exception(error)
            return
        trim_heap()
        reuse_freed_memory()
        self._stats = core.stats()
        prepared.set_result((model, core.context_length))
        del prepared, make_model, model  # what is kept is in `core`
        closing = False
        while not closing:
            with self._wake:
                self._wake.wait_for(lambda: self._inbox or self._closed or not core.is_idle)
                messages, self._inbox = self._inbox, []
                closing = self._closed
            try:
                outputs = self._take_in(core, messages)
                outputs += core.close() if closing else core.step()
            except Exception:  # a bug of ours must not leave clients waiting for ever
                log.exception("engine_failed")
                outputs = core.fail_all()
            with self._wake:
                self._stats = core.stats()
            self._deliver(outputs)
            if outputs and core.is_idle:  # between short-lived tensors glibc's heap keeps up to 120 MB of gaps
                trim_heap()

    def _take_in(self, core: EngineCore, messages: list[_Message]) -> list[StepOutput]:
        outputs: list[StepOutput] = []
        for message in messages:
            match message:
                case _Stream(request=request):
                    self._streams[request.request_id] = message
                    core.add(request)
                case _Abort(request_id=request_id):
                    outputs += core.abort(request_id)
                case _AddAdapter():
                    _add_adapter(core, message)
                case _RemoveAdapter(adapter=adapter):
                    core.remove_adapter(adapter)
        return outputs

    def _deliver(self, outputs: list[StepOutput]) -> None:
        """Hand over a step's outputs, each event loop woken once."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, StepOutput]]] = {}
        for output in outputs:
            stream = self._streams[output.request_id]
            if isinstance(output, RequestFailure) or output.finish_reason is not None:
                del self._streams[output.request_id]
            loops.setdefault(stream.loop, []).append((stream, output))
        for loop, pairs in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put, pairs)


def _add_adapter(core: EngineCore, message: _AddAdapter) -> None:
    if not message.added.set_running_or_notify_cancel():  # nobody waits for it any more
        return
    try:
        core.add_adapter(message.adapter, message.weights)
        message.added.set_result(None)
    except Exception as error:  # too little memory, say: those who wait for this adapter fail alone
        log.exception("adapter_failed", adapter=message.adapter.name)
        failure = ModelLoadError(f"The adapter {message.adapter.name!r} cannot be put in place: {error}")
        message.added.set_exception(failure)


def _put(pairs: list[tuple[_Stream, StepOutput]]) -> None:
    for stream, output in pairs:
        stream.queue.put_nowait(output)
