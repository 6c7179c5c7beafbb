"""The supervisor: one process per data directory that owns the engine processes.

It knows which worker processes live, which models are loaded where, and how often what crashed. It does not see
messages, prompts or tokens: those flow between workers and engines directly. It ends by itself when the last
worker has gone and no training job waits or runs.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from typing import IO, Any

import msgspec
import uvloop

from mini_claude.errors import InternalError, MiniClaudeError, NotFound, Unavailable
from mini_claude.runtime import sockets
from mini_claude.runtime.connection import Connection, Listener
from mini_claude.runtime.job_queue import JobQueue
from mini_claude.runtime.launches import EngineLaunch, SupervisorLaunch
from mini_claude.runtime.liveness import ProcessIdentity, rss_bytes
from mini_claude.runtime.messages import (
    AcquireModel,
    Answer,
    CallFailed,
    Codec,
    Done,
    Ending,
    EngineAddress,
    EngineFailed,
    EngineHeartbeat,
    EngineReady,
    Envelope,
    Fact,
    GetMetrics,
    GetStatus,
    Goodbye,
    Hello,
    MetricsText,
    ProcessMemory,
    Publish,
    RuntimeStatus,
    Shutdown,
    SupervisorInbound,
    SupervisorOutbound,
    UnloadModel,
)
from mini_claude.runtime.metrics import Metrics
from mini_claude.runtime.model_slot import ModelSlot
from mini_claude.runtime.page_process import PageProcess
from mini_claude.runtime.retention import Retention
from mini_claude.types import GpuMemory, LoadOptions, ModelSpec
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import configure_logging, get_logger

log = get_logger(__name__)

WATCH_SECONDS = 0.5  # how often workers without a line are looked for
FIRST_HELLO_SECONDS = 30.0


class Supervisor:
    """Serves calls from workers until the last of them has gone."""

    def __init__(
        self,
        settings: Settings,
        jobs: JobQueue | None = None,
        page: PageProcess | None = None,
        retention: Retention | None = None,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._page = page
        self._retention = retention
        self._address = sockets.supervisor_address(settings.data_dir)
        self._listener = Listener(self._address, self._receive, self._left)
        self._slots: dict[str, ModelSlot] = {}
        self._workers: dict[ProcessIdentity, Connection] = {}  # and the line by which each said hello last
        self._lines: set[Connection] = set()  # of workers, and of the page
        self._somebody_left = asyncio.Event()
        self._metrics = Metrics()
        self._calls: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._ends_at = time.monotonic() + FIRST_HELLO_SECONDS  # moves on as long as a worker lives

    async def listen(self) -> None:
        """From here on calls are accepted."""
        await self._listener.open()

    def end(self) -> None:
        """Stop serving; `run` then ends the engines and returns."""
        self._ending.set()

    async def run(self) -> None:
        """Serve until `end`, or until no worker is left."""
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._watch_workers()),
            asyncio.create_task(self._unload_idle()),
        ]
        if self._jobs is not None:
            tasks.append(asyncio.create_task(self._jobs.run()))
        if self._page is not None:
            tasks.append(asyncio.create_task(self._page.run()))
        if self._retention is not None:
            tasks.append(asyncio.create_task(self._retention.run()))
        ended = asyncio.create_task(self._ending.wait())
        done, _ = await asyncio.wait([*tasks, ended], return_when=asyncio.FIRST_COMPLETED)
        self._ending.set()  # also where a loop of ours broke
        for task in tasks:
            task.cancel()
        for line in self._lines:
            line.send(Codec.encode(Answer(0, Ending())))
        await asyncio.gather(*(slot.close() for slot in self._slots.values()))
        if self._page is not None:
            await self._page.close()
        await self._listener.aclose()
        for task in done - {ended}:
            task.result()  # a loop of ours that ended early did so with an exception

    def _receive(self, line: Connection, frame: bytes) -> None:
        try:
            envelope: Envelope = Codec.decode_envelope(frame)
        except msgspec.DecodeError:
            log.warning("frame.undecodable", num_bytes=len(frame))
            return
        if isinstance(envelope.body, Publish):  # what comes with every request, and waits for nothing
            self._record(envelope.body.facts)
            return
        if isinstance(envelope.body, Hello) and self._ending.is_set():
            return  # no answer: the newcomer starts another supervisor once this line is cut
        call = asyncio.create_task(self._serve(line, envelope))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def _record(self, facts: tuple[Fact, ...]) -> None:
        try:
            self._metrics.record(facts)
        except Exception:
            log.exception("facts.failed")  # of traffic: nothing depends on them

    def _left(self, line: Connection) -> None:
        self._lines.discard(line)
        self._somebody_left.set()

    async def _serve(self, line: Connection, envelope: Envelope) -> None:
        try:
            answer = await self._answer(envelope.body, line)
            if isinstance(envelope.body, Hello) and not line.closed:
                self._lines.add(line)
        except MiniClaudeError as error:
            answer = CallFailed(type(error).__name__, error.info())
        except Exception:
            log.exception("call.failed", call=type(envelope.body).__name__)
            fault = InternalError("The supervisor failed at this; its log says why.")
            answer = CallFailed("InternalError", fault.info())
        if envelope.call_id:
            line.send(Codec.encode(Answer(envelope.call_id, answer)))

    async def _answer(self, body: SupervisorInbound, line: Connection) -> SupervisorOutbound:
        match body:
            case AcquireModel(spec=spec, options=options, exact=exact, gone=gone):
                if self._ending.is_set():
                    raise Unavailable("The server is shutting down.", code="shutting_down", retry_after=5.0)
                process = await self._slot(spec.name).acquire(spec, options, exact=exact, gone=gone)
                return EngineAddress(process.launch.address, process.info())
            case UnloadModel(name=name):
                if name not in self._slots:
                    raise NotFound(f"{name!r} is not loaded.", code="model_not_loaded", param="model")
                await self._slots[name].unload()
            case GetStatus():
                return self._status()
            case GetMetrics():
                return MetricsText(self._metrics.exposition(self._status()))
            case Hello(role="page"):
                pass
            case Hello(pid=pid, started=started):
                self._workers[ProcessIdentity(pid, started)] = line
                self._ends_at = time.monotonic() + self._settings.linger_seconds
            case Goodbye(pid=pid):
                self._workers = {worker: line for worker, line in self._workers.items() if worker.pid != pid}
                self._somebody_left.set()
            case Shutdown():
                self.end()
            case (
                EngineReady(model=model, pid=pid)
                | EngineFailed(model=model, pid=pid)
                | EngineHeartbeat(model=model, pid=pid)
            ):
                for process in self._slots[model].processes:
                    if process.pid == pid:
                        process.tell(body)
        return Done()

    def _slot(self, name: str) -> ModelSlot:
        if name not in self._slots:
            self._slots[name] = ModelSlot(
                name,
                self._new_launch,
                load_seconds=self._settings.load_timeout_seconds,
                drain_seconds=self._settings.shutdown_seconds,
            )
        return self._slots[name]

    def _new_launch(self, spec: ModelSpec, options: LoadOptions) -> EngineLaunch:
        settings: dict[str, Any] = self._settings.model_dump(mode="json", exclude={"database_url", "limits_url"})
        address = sockets.new_engine_address(self._settings.data_dir)
        return EngineLaunch(spec, options, address, self._address, settings)

    def _status(self) -> RuntimeStatus:
        serving = {name: slot.serving for name, slot in self._slots.items() if slot.serving is not None}
        roles = [("supervisor", os.getpid())]
        roles += [("worker", worker.pid) for worker in self._workers]
        if self._page is not None and self._page.pid is not None:
            roles.append(("page", self._page.pid))
        roles += [(f"engine:{name}", process.pid) for name, slot in self._slots.items() for process in slot.processes]
        memory = [(role, pid, rss_bytes(pid)) for role, pid in roles]
        gpus: dict[int, GpuMemory] = {gpu.index: gpu for process in serving.values() for gpu in process.gpus}
        return RuntimeStatus(
            models=tuple(info for slot in self._slots.values() if (info := slot.info()) is not None),
            processes=tuple(ProcessMemory(role, pid, rss) for role, pid, rss in memory if rss is not None),
            engines={name: process.stats for name, process in serving.items()},
            gpus=tuple(gpus.values()),
        )

    async def _watch_workers(self) -> None:
        """End when no worker has lived for `linger_seconds`, and no job has been open.

        The system cuts a process's line when it ends. One without a line may live all the same, and come back.
        """
        linger = self._settings.linger_seconds
        while True:
            if self._workers and not any(line.closed for line in self._workers.values()):
                self._somebody_left.clear()
                await self._somebody_left.wait()
                self._ends_at = time.monotonic() + linger
            else:
                await asyncio.sleep(WATCH_SECONDS)
            workers = self._workers.items()
            self._workers = {worker: line for worker, line in workers if not line.closed or worker.alive()}
            if self._workers or (self._jobs is not None and self._jobs.busy):
                self._ends_at = time.monotonic() + linger
            elif time.monotonic() >= self._ends_at:
                break
        log.info("supervisor.no_workers_left")
        self.end()

    async def _unload_idle(self) -> None:
        limit = self._settings.idle_unload_seconds
        while True:
            await asyncio.sleep(max(min(limit / 4, 5.0), 0.1) if limit else 3600.0)
            for slot in list(self._slots.values()) if limit else ():
                if slot.serving is not None and slot.serving.idle_seconds >= limit:
                    log.info("model.idle", model=slot.name, idle_seconds=slot.serving.idle_seconds)
                    with contextlib.suppress(NotFound):  # somebody unloaded it meanwhile
                        await slot.unload()


def hold_lock(settings: Settings) -> IO[str] | None:
    """The open lock file that makes this process the supervisor, or None when another one is."""
    lock = sockets.supervisor_lock(settings.data_dir).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


async def serve(settings: Settings) -> None:
    """Run a supervisor to its end; tell whoever started us, by one line, that it can be called."""
    jobs = JobQueue.open(settings)
    page = PageProcess(settings) if settings.serves_page else None
    supervisor = Supervisor(settings, jobs, page, Retention.open(settings))
    await supervisor.listen()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.end)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    log.info("supervisor.ready", pid=os.getpid())
    await supervisor.run()
    log.info("supervisor.ended")


def main() -> None:
    """Entry point of the process: a `SupervisorLaunch` as JSON on standard input."""
    launch = msgspec.json.decode(sys.stdin.buffer.read(), type=SupervisorLaunch)
    secret = {"database_url": launch.database_url, "limits_url": launch.limits_url}
    settings = Settings.model_validate(launch.settings | secret)
    lock = hold_lock(settings)
    if lock is None:
        return
    configure_logging(settings, "supervisor")
    with lock:
        uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
