"""The supervisor's hold on one engine process: start it, hear that it is ready or failed, end it."""

import asyncio
import contextlib
import signal
import time

from mini_claude.errors import MiniClaudeError, ModelLoadError, from_info
from mini_claude.runtime.child import start_child
from mini_claude.runtime.launches import EngineLaunch
from mini_claude.runtime.liveness import rss_bytes
from mini_claude.runtime.messages import EngineFailed, EngineHeartbeat, EngineReady
from mini_claude.types import EngineStats, GpuMemory, LoadOptions, ModelInfo, ModelSpec
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

# How glibc keeps an engine's memory. One heap for all threads: it otherwise makes one for each, and those that loading
# used and freed stay resident (up to 400 MB for the embedded model); only the model's own thread allocates much, so
# nothing waits for it. And, while it loads, whatever is a megabyte or more apart from the heap, so that it goes back
# when it is freed; once loaded, the engine sets that higher.
ENGINE_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
KILL_AFTER_SECONDS = 5.0  # beyond the deadline that the process sets itself


class EngineProcess:
    """One child process with one model. `exited` is set when it has ended, for whatever reason."""

    def __init__(self, launch: EngineLaunch, process: asyncio.subprocess.Process) -> None:
        self.launch = launch
        self.exited = asyncio.Event()
        self.stats = EngineStats()
        self.gpus: tuple[GpuMemory, ...] = ()
        self.idle_seconds = 0.0
        self._process = process
        self._loaded: asyncio.Future[EngineReady] = asyncio.get_running_loop().create_future()
        self._loaded_at = 0.0
        self._waiter = asyncio.create_task(self._wait())

    @classmethod
    async def start(cls, launch: EngineLaunch) -> "EngineProcess":
        """Start the child."""
        process = await start_child("mini_claude.runtime.engine_server", launch, ENGINE_ENVIRONMENT)
        log.info("engine.started", model=launch.spec.name, pid=process.pid)
        return cls(launch, process)

    @property
    def spec(self) -> ModelSpec:
        """The model inside."""
        return self.launch.spec

    @property
    def options(self) -> LoadOptions:
        """How it was loaded."""
        return self.launch.options

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def tell(self, message: EngineReady | EngineFailed | EngineHeartbeat) -> None:
        """Take in what the child reports."""
        match message:
            case EngineHeartbeat():
                self.stats, self.gpus, self.idle_seconds = message.stats, message.gpus, message.idle_seconds
            case EngineReady() if not self._loaded.done():
                self._loaded_at = time.time()
                self._loaded.set_result(message)
            case EngineFailed(kind=kind, error=error) if not self._loaded.done():
                self._loaded.set_exception(from_info(error, kind))

    async def loaded(self, seconds: float) -> None:
        """Wait for the model. Raises `ModelLoadError` (or what the child raised) and leaves no process behind."""
        try:
            await asyncio.wait_for(asyncio.shield(self._loaded), seconds)
        except TimeoutError:
            await self.kill()
            raise ModelLoadError(
                f"{self.spec.name!r} did not load within {seconds:.0f} s (load_timeout_seconds).",
                code="load_timeout",
            ) from None
        except MiniClaudeError:
            await self.exited.wait()
            raise
        except asyncio.CancelledError:
            await self.kill()
            raise

    def info(self) -> ModelInfo:
        """The ready model."""
        ready = self._loaded.result()
        return ModelInfo(
            name=self.spec.name,
            state="ready",
            description=self.spec.description,
            license=self.spec.license,
            engine=ready.engine,
            context_length=ready.context_length,
            dtype=ready.dtype,
            device=ready.device,
            quantization=self.options.quantization,
            memory_bytes=rss_bytes(self.pid),
            loaded_at=self._loaded_at,
            pid=self.pid,
        )

    async def drain(self, seconds: float) -> None:
        """Let running replies finish for so long, then end; returns when the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.exited.wait(), seconds + KILL_AFTER_SECONDS)
        except TimeoutError:
            log.warning("engine.killed", model=self.spec.name, pid=self.pid)
            await self.kill()

    async def kill(self) -> None:
        """End it now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self.exited.wait()

    async def _wait(self) -> None:
        code = await self._process.wait()
        log.info("engine.exited", model=self.spec.name, pid=self.pid, exit_code=code)
        if not self._loaded.done():
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            hint = " The system may have run out of memory." if code == -signal.SIGKILL else ""
            self._loaded.set_exception(ModelLoadError(f"The process that was loading {self.spec.name!r} {how}.{hint}"))
            self._loaded.exception()  # seen, also when nobody waits any more
        self.exited.set()
