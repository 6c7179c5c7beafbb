"""One model's place in the supervisor: at most one load under way, at most one process serving.

(empty) --acquire--> loading --ready--> serving --unload--> unloading --> (empty)
                        |                 | crash: loading again, unless the circuit breaker is open
                        '--failed--> (what served before, if anything, goes on)
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace

from mini_claude.errors import MiniClaudeError, NotFound, Unavailable
from mini_claude.runtime.circuit_breaker import CircuitBreaker
from mini_claude.runtime.engine_process import EngineProcess
from mini_claude.runtime.launches import EngineLaunch
from mini_claude.types import LoadOptions, ModelInfo, ModelSpec, ModelState
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

GONE_SECONDS = 3.0  # for a process whose line to a worker was cut to have ended


class ModelSlot:
    """Loads, replaces, restarts and unloads the process of one model."""

    def __init__(
        self,
        name: str,
        new_launch: Callable[[ModelSpec, LoadOptions], EngineLaunch],
        *,
        load_seconds: float,
        drain_seconds: float,
    ) -> None:
        self.name = name
        self.serving: EngineProcess | None = None
        self.processes: set[EngineProcess] = set()  # every living one: loading, serving, draining
        self._new_launch = new_launch
        self._load_seconds = load_seconds
        self._drain_seconds = drain_seconds
        self._change = asyncio.Lock()  # one load or unload at a time
        self._load_task: asyncio.Task[EngineProcess] | None = None
        self._loading_options: LoadOptions | None = None
        self._unloading = False
        self._error: str | None = None
        self._breaker = CircuitBreaker()
        self._restarts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def acquire(
        self, spec: ModelSpec, options: LoadOptions, *, exact: bool = False, gone: str | None = None
    ) -> EngineProcess:
        """The serving process, loaded first if need be. Racing callers share one load.

        Raises `ModelLoadError` and its kin, or `Unavailable` while the circuit breaker is open.
        """
        if self.serving is not None and self.serving.launch.address == gone:
            with contextlib.suppress(TimeoutError):  # it lives: only its line to the caller was cut
                await asyncio.wait_for(self.serving.exited.wait(), GONE_SECONDS)
        if not exact and self.serving is not None and not self.serving.exited.is_set():
            return self.serving  # also while another copy is being loaded, which may fail
        load = self._load_task
        if load is not None and exact and self._loading_options != options:
            await asyncio.wait([load])  # its outcome is its callers' affair
            return await self.acquire(spec, options, exact=exact)
        if load is None:
            serving = self.serving
            if serving is not None and not serving.exited.is_set() and serving.options == options:
                return serving
            self._loading_options = options
            load = self._load_task = asyncio.create_task(self._load(spec, options))
            load.add_done_callback(self._load_ended)
        return await asyncio.shield(load)

    async def unload(self) -> None:
        """End the process after its running replies. Raises `NotFound` when nothing is loaded."""
        async with self._change:
            process, self.serving = self.serving, None
            if process is None:
                raise NotFound(f"{self.name!r} is not loaded.", code="model_not_loaded", param="model")
            self._error = None
            self._unloading = True
            try:
                await self._end(process)
            finally:
                self._unloading = False

    async def close(self) -> None:
        """End every process of this model; nothing is started again."""
        self.serving = None
        for task in [*self._tasks, *([self._load_task] if self._load_task else [])]:
            task.cancel()
        await asyncio.gather(*(process.drain(self._drain_seconds) for process in list(self.processes)))

    def info(self) -> ModelInfo | None:
        """What the API shows; None while nothing is, was, or is being loaded."""
        if self.serving is not None:
            return replace(self.serving.info(), error=self._error, restarts=self._restarts)
        if self._load_task or self._unloading or self._error:
            state: ModelState = "loading" if self._load_task else "unloading" if self._unloading else "failed"
            return ModelInfo(name=self.name, state=state, error=self._error, restarts=self._restarts)
        return None

    async def _load(self, spec: ModelSpec, options: LoadOptions) -> EngineProcess:
        """Start a process; when it is ready it takes the place of the serving one, else that one stays."""
        async with self._change:
            wait = self._breaker.retry_after()
            if wait is not None:
                raise Unavailable(
                    f"{self.name!r} crashed repeatedly and is not started again for {wait:.0f} s; "
                    "see the engine's log.",
                    code="engine_crash_loop",
                    retry_after=wait,
                )
            process = await EngineProcess.start(self._new_launch(spec, options))
            self.processes.add(process)
            try:
                await process.loaded(self._load_seconds)
            except BaseException:
                self.processes.discard(process)
                raise
            replaced, self.serving, self._error = self.serving, process, None
            self._spawn(self._watch(process))
            if replaced is not None:
                self._spawn(self._end(replaced))
            return process

    def _load_ended(self, load: asyncio.Task[EngineProcess]) -> None:
        self._load_task = None
        error = None if load.cancelled() else load.exception()
        if isinstance(error, MiniClaudeError):
            self._error = error.message
            log.warning("model.load_failed", model=self.name, code=error.code, error=error.message)
        elif error is not None:
            self._error = "Loading failed for an unexpected reason; see the supervisor's log."
            log.error("model.load_broke", model=self.name, exc_info=error)

    async def _watch(self, process: EngineProcess) -> None:
        """When the serving process ends unasked, start it again."""
        await process.exited.wait()
        self.processes.discard(process)
        if self.serving is not process:
            return
        self.serving = None
        self._breaker.record_crash()
        self._restarts += 1
        self._error = "The engine process ended unexpectedly."
        log.error("engine.crashed", model=self.name, pid=process.pid, restarts=self._restarts)
        try:
            await self.acquire(process.spec, process.options)
        except MiniClaudeError as error:
            self._error = error.message
            log.error("engine.not_restarted", model=self.name, code=error.code)

    async def _end(self, process: EngineProcess) -> None:
        await process.drain(self._drain_seconds)
        self.processes.discard(process)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
