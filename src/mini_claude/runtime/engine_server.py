"""The program of an engine process: one model, one engine, any number of workers.

A request's way here: frame in -> messages rendered to token ids -> the engine accepts -> deltas out, numbered.
"""

import asyncio
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import uvloop

from mini_claude.errors import InternalError, InvalidRequest, MiniClaudeError, NotFound, Unavailable
from mini_claude.runtime.connection import Connection, Listener
from mini_claude.runtime.launches import EngineLaunch
from mini_claude.runtime.liveness import end_with_parent
from mini_claude.runtime.loaded_model import LoadedModel, open_model
from mini_claude.runtime.messages import (
    Abort,
    Accepted,
    Attach,
    Codec,
    Detach,
    EngineFailed,
    EngineHeartbeat,
    EngineInbound,
    EngineOutbound,
    EngineReady,
    EngineReport,
    Failed,
    GetEngineStats,
    StartChat,
    StartCompletion,
)
from mini_claude.runtime.preparation import prepare
from mini_claude.runtime.reply_log import ReplyLog
from mini_claude.runtime.supervisor_line import SupervisorLine
from mini_claude.types import GenerationRequest, GpuMemory
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import configure_logging, get_logger

log = get_logger(__name__)

HEARTBEAT_SECONDS = 1.0


class EngineServer:
    """Answers workers and keeps the supervisor informed."""

    def __init__(self, launch: EngineLaunch, settings: Settings, model: LoadedModel) -> None:
        self._launch = launch
        self._settings = settings
        self._chat_model = model.chat_model
        self._engine = model.engine
        self._kind = model.kind
        self._listener = Listener(launch.address, self._receive, self._left)
        self._replies: dict[str, ReplyLog] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._outbox: dict[Connection, list[bytes]] = {}  # frames by worker
        self._last_request_ended = time.monotonic()
        self._draining = asyncio.Event()

    async def listen(self) -> None:
        """From here on workers can connect."""
        await self._listener.open()

    def drain(self) -> None:
        """Take no new requests; `run` returns when the running ones have ended or the deadline has passed."""
        self._draining.set()

    async def run(self, tell: SupervisorLine) -> None:
        """Serve until drained."""
        heartbeat = asyncio.create_task(self._heartbeat(tell))
        drained = asyncio.create_task(self._draining.wait())
        await asyncio.wait([heartbeat, drained], return_when=asyncio.FIRST_COMPLETED)
        self._draining.set()  # also where the heartbeat broke
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._settings.shutdown_seconds)
        ending = Unavailable(
            "The model is being loaded anew or unloaded, or the server shut down, and replies that run then get "
            f"{self._settings.shutdown_seconds:.0f} s (the setting shutdown_seconds).",
            code="shutting_down",
            retry_after=5.0,
        )
        for request_id, task in list(self._tasks.items()):
            task.cancel()
            self._fail(self._replies[request_id], ending)
        heartbeat.cancel()
        await self._engine.close()
        self._flush()
        await self._listener.aclose()
        if heartbeat.done() and not heartbeat.cancelled():
            heartbeat.result()  # it ended early, with an exception

    def _receive(self, worker: Connection, frame: bytes) -> None:
        try:
            message: EngineInbound = Codec.decode_engine_inbound(frame)
        except msgspec.DecodeError:
            log.warning("frame.undecodable", num_bytes=len(frame))
        else:
            self._dispatch(worker, message)

    def _left(self, worker: Connection) -> None:
        for reply in [reply for reply in self._replies.values() if worker in reply.listeners]:
            self._remove_listener(reply, worker)

    def _dispatch(self, worker: Connection, message: EngineInbound) -> None:
        match message:
            case StartChat() | StartCompletion():
                self._start(worker, message)
            case Attach(request_id=request_id, after=after):
                self._attach(worker, request_id, after)
            case Detach(request_id=request_id):
                if request_id in self._replies:
                    self._remove_listener(self._replies[request_id], worker)
            case Abort(request_id=request_id):
                self._engine.abort(request_id)
            case GetEngineStats(request_id=request_id):
                self._send(worker, EngineReport(request_id, self._engine.stats(), self._gpus()))

    # --- replies ---

    def _start(self, worker: Connection, message: StartChat | StartCompletion) -> None:
        request_id = message.request_id
        reply = ReplyLog(request_id, worker, resumable=isinstance(message, StartChat) and message.resumable)
        if self._draining.is_set():
            unloading = Unavailable("The model is being unloaded.", code="model_unloading", retry_after=5.0)
            self._fail(reply, unloading)
        elif request_id in self._replies:
            self._fail(reply, InvalidRequest(f"The request id {request_id!r} is in use.", param="request_id"))
        else:
            try:
                self._engine.check_room(message.owner)  # here, so that a refusal needs no tokenising
            except MiniClaudeError as error:
                self._fail(reply, error)
                return
            self._replies[request_id] = reply
            self._tasks[request_id] = asyncio.create_task(self._reply(reply, message))

    async def _reply(self, reply: ReplyLog, message: StartChat | StartCompletion) -> None:
        try:
            prepared = await asyncio.to_thread(prepare, self._chat_model, message)
            request = prepared.request
            if request.adapter is not None:
                await self._engine.load_adapter(request.adapter)  # here, so that its errors come before `Accepted`
            if not reply.listeners and not reply.resumable:
                return  # the client left while its prompt was tokenised
            self._engine.check(request)
            reply.prompt_tokens = len(request.prompt_token_ids)
            self._send_all(
                reply,
                Accepted(reply.request_id, reply.prompt_tokens, prepared.dropped_messages, prepared.prompt),
            )
            await self._generate(reply, request)
        except MiniClaudeError as error:
            self._fail(reply, error)
        except Exception:
            log.exception("reply.failed", request_id=reply.request_id)
            self._fail(reply, InternalError("Generating this reply failed; the engine's log says why."))
        finally:
            del self._tasks[reply.request_id]
            self._last_request_ended = time.monotonic()
            keep_seconds = self._settings.resume_seconds if reply.resumable else 0.0
            asyncio.get_running_loop().call_later(keep_seconds, self._replies.pop, reply.request_id, None)

    async def _generate(self, reply: ReplyLog, request: GenerationRequest) -> None:
        seconds = self._settings.max_reply_seconds
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(None) as limit:
                async for delta in self._engine.generate(request):
                    if seconds and limit.when() is None:  # the first one: what is waited before is nobody's wish
                        limit.reschedule(now() + seconds)
                    self._send_all(reply, reply.append(delta))
        except TimeoutError as error:
            raise InvalidRequest(
                f"This server writes a reply for {seconds:g} s at most: ask for fewer tokens.",
                code="reply_time_limit",
                param="max_tokens",
            ) from error

    def _attach(self, worker: Connection, request_id: str, after: int) -> None:
        reply = self._replies.get(request_id)
        if reply is None or not reply.resumable:
            gone = NotFound(f"No reply {request_id!r} is running here.", code="reply_not_found", param="reply_id")
            self._send(worker, Failed(request_id, "NotFound", gone.info()))
            return
        reply.listeners.add(worker)
        self._send(worker, Accepted(request_id, reply.prompt_tokens))
        for event in reply.after(after):
            self._send(worker, event)

    def _remove_listener(self, reply: ReplyLog, worker: Connection) -> None:
        reply.listeners.discard(worker)
        if reply.listeners or reply.ended:
            return
        if reply.resumable:
            loop = asyncio.get_running_loop()
            loop.call_later(self._settings.resume_seconds, self._abort_unless_heard, reply)
        else:
            self._engine.abort(reply.request_id)

    def _abort_unless_heard(self, reply: ReplyLog) -> None:
        if not reply.listeners:
            self._engine.abort(reply.request_id)

    def _fail(self, reply: ReplyLog, error: MiniClaudeError) -> None:
        self._send_all(reply, reply.fail(Failed(reply.request_id, type(error).__name__, error.info())))

    def _send_all(self, reply: ReplyLog, message: EngineOutbound) -> None:
        for worker in reply.listeners:
            self._send(worker, message)

    def _send(self, worker: Connection, message: EngineOutbound) -> None:
        """With everything else that is sent in this turn of the loop: a step's deltas are one message to a worker."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.setdefault(worker, []).append(Codec.encode(message))

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for worker, frames in outbox.items():
            worker.send(*frames)

    # --- the supervisor ---

    async def _heartbeat(self, tell: SupervisorLine) -> None:
        while True:
            stats = self._engine.stats()
            busy = bool(self._tasks)
            idle_seconds = 0.0 if busy else time.monotonic() - self._last_request_ended
            tell(EngineHeartbeat(self._launch.spec.name, os.getpid(), idle_seconds, stats, self._gpus()))
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _gpus(self) -> tuple[GpuMemory, ...]:
        if self._kind != "torch":
            return ()
        from mini_claude.utils.model_utils import gpu_memory

        return gpu_memory()


async def serve(launch: EngineLaunch, settings: Settings) -> None:
    """Load the model, serve it, end."""
    tell = await SupervisorLine.open(launch.supervisor_address)
    name, pid = launch.spec.name, os.getpid()
    loop = asyncio.get_running_loop()
    try:
        # In a thread that ends: one that has used torch and lives on keeps OpenMP workers, and with more workers than
        # cores all of them sleep between operations instead of spinning, which makes decoding 1.6 times slower.
        with ThreadPoolExecutor(1) as loader:
            model = await loop.run_in_executor(loader, open_model, launch.spec, launch.options, settings)
    except MiniClaudeError as error:
        tell(EngineFailed(name, pid, type(error).__name__, error.info()))
        return await tell.aclose()
    except Exception as error:
        log.exception("model.load_failed", model=name)
        fault = InternalError(f"Loading {name!r} failed unexpectedly ({type(error).__name__}); see the engine's log.")
        tell(EngineFailed(name, pid, "ModelLoadError", fault.info()))
        return await tell.aclose()
    server = EngineServer(launch, settings, model)
    await server.listen()
    loop.add_signal_handler(signal.SIGTERM, server.drain)
    tell(EngineReady(name, pid, model.kind, model.engine.context_length, model.dtype, model.device))
    log.info("model.ready", model=name, dtype=model.dtype, device=model.device)
    await server.run(tell)
    return await tell.aclose()


def main() -> None:
    """Entry point of the process: an `EngineLaunch` as one line of JSON on standard input."""
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineLaunch)
    end_with_parent(lambda: os._exit(1))
    settings = Settings.model_validate(launch.settings)
    configure_logging(settings, f"engine-{launch.spec.name}")
    uvloop.run(serve(launch, settings))


if __name__ == "__main__":
    main()
