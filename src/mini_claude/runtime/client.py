"""The `Runtime` that API workers use: the supervisor for where things are, engine processes for tokens.

Both lines are found again when the process behind them has died, so a worker never has to be restarted because
something else was: an engine by the next call for it, the supervisor at once, since training jobs wait for nobody's
call.
"""

import asyncio
import time
from typing import Self

from mini_claude.errors import EngineDied, MiniClaudeError, Unavailable
from mini_claude.runtime.engine_connection import EngineConnection, EngineReply
from mini_claude.runtime.liveness import ProcessIdentity
from mini_claude.runtime.messages import (
    AcquireModel,
    ClientRole,
    EngineAddress,
    EngineReport,
    Fact,
    GetMetrics,
    GetStatus,
    Goodbye,
    MetricsText,
    Publish,
    RuntimeStatus,
    Shutdown,
    StartChat,
    StartCompletion,
    SupervisorInbound,
    SupervisorOutbound,
    UnloadModel,
)
from mini_claude.runtime.supervisor_connection import SupervisorConnection, connect_supervisor
from mini_claude.types import LoadOptions, ModelInfo, ModelSpec
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.25, 30.0  # before another supervisor is started, doubled each time
FACTS_SECONDS = 0.1
SETTLED_SECONDS = 60.0  # a supervisor that lived as long was all right
START_ATTEMPTS = 3  # before anything was generated, moving to a new engine process cannot be noticed


class RuntimeClient:
    """Implements `runtime.Runtime` over Unix sockets. Belongs to one event loop."""

    def __init__(self, settings: Settings, role: ClientRole = "worker") -> None:
        self._settings = settings
        self._role = role
        self._identity = ProcessIdentity.own()
        self._supervisor: SupervisorConnection | None = None
        self._supervisor_lock = asyncio.Lock()
        self._keepers: set[asyncio.Task[None]] = set()
        self._num_restarts = 0  # of supervisors that ended soon
        self._engine_lock = asyncio.Lock()
        self._engines: dict[str, EngineConnection] = {}  # by model, the newest
        self._open: set[EngineConnection] = set()  # also those of processes that are being replaced
        self._facts: list[Fact] = []  # to be published, at the latest when the timer says
        self._facts_timer: asyncio.TimerHandle | None = None
        self._closed = False

    @classmethod
    async def connect(cls, settings: Settings, role: ClientRole = "worker") -> Self:
        """A client whose supervisor answers. Raises `Unavailable` or `StorageError`."""
        client = cls(settings, role)
        await client._connected()
        return client

    async def load(self, spec: ModelSpec, options: LoadOptions, *, exact: bool = True) -> ModelInfo:
        """A copy loaded with other options is replaced once the new one is ready, or with `exact=False` kept."""
        return (await self._acquire(spec, options, exact=exact)).info

    async def unload(self, name: str) -> None:
        """Returns when the process has ended."""
        await self._call(UnloadModel(name))

    async def status(self) -> RuntimeStatus:
        """What runs now."""
        status = await self._call(GetStatus())
        assert isinstance(status, RuntimeStatus)
        return status

    async def metrics(self) -> str:
        """Prometheus exposition text."""
        metrics = await self._call(GetMetrics())
        assert isinstance(metrics, MetricsText)
        return metrics.text

    async def start(self, spec: ModelSpec, options: LoadOptions, request: StartChat | StartCompletion) -> EngineReply:
        """Start a reply on the model's engine process, loading the model first if need be."""
        for _ in range(START_ATTEMPTS - 1):
            engine = await self._engine(spec, options)
            try:
                return await engine.start(request)
            except Unavailable as error:
                if not isinstance(error, EngineDied) and error.code != "model_unloading":
                    raise
                engine.leaving = True  # open replies keep this connection until they end
        return await (await self._engine(spec, options)).start(request)

    async def attach(self, spec: ModelSpec, options: LoadOptions, request_id: str, after: int) -> EngineReply:
        """Follow a resumable reply, from any worker."""
        return await (await self._engine(spec, options)).attach(request_id, after)

    async def engine_report(self, spec: ModelSpec, options: LoadOptions) -> EngineReport:
        """Figures straight from the engine process, not a second old."""
        return await (await self._engine(spec, options)).report()

    def publish(self, *facts: Fact) -> None:
        """Facts are lost while no supervisor runs; they describe traffic and nothing depends on them.

        Those of FACTS_SECONDS go together: waking the supervisor costs more than reading them.
        """
        if not self._facts:
            self._facts_timer = asyncio.get_running_loop().call_later(FACTS_SECONDS, self._send_facts)
        self._facts += facts

    def _send_facts(self) -> None:
        facts, self._facts = self._facts, []
        if self._facts_timer is not None:
            self._facts_timer.cancel()
        if self._supervisor is not None:
            self._supervisor.post(Publish(tuple(facts)))

    async def shutdown_supervisor(self) -> None:
        """Tell the supervisor to end with all its engines; it cannot answer that it has. The next call starts one."""
        (await self._connected()).post(Shutdown())

    async def aclose(self) -> None:
        """Say goodbye and close every socket."""
        self._closed = True  # so that no request opens another one meanwhile
        if self._facts:
            self._send_facts()
        for keeper in self._keepers:
            keeper.cancel()
        async with self._engine_lock:
            closing = [engine.aclose() for engine in self._open]
        if self._supervisor is not None:
            self._supervisor.post(Goodbye(self._identity.pid))
            closing.append(self._supervisor.aclose())
        await asyncio.gather(*closing)

    async def _keep_supervisor(self, supervisor: SupervisorConnection) -> None:
        """Once the supervisor is gone without having said that it would end, start another."""
        connected_at = time.monotonic()
        await supervisor.wait_closed()
        if time.monotonic() - connected_at > SETTLED_SECONDS:
            self._num_restarts = 0
        while not supervisor.ended_on_purpose:
            await asyncio.sleep(min(FIRST_RETRY_SECONDS * 2**self._num_restarts, LAST_RETRY_SECONDS))
            self._num_restarts = min(self._num_restarts + 1, 16)
            try:
                await self._connected()  # the new connection has a keeper of its own
            except (MiniClaudeError, OSError) as error:
                log.warning("supervisor.not_started", error=str(error))
            else:
                return

    async def _connected(self) -> SupervisorConnection:
        async with self._supervisor_lock:
            self._require_open()
            if self._supervisor is None or self._supervisor.closed:
                supervisor = await connect_supervisor(self._settings, self._identity, self._role)
                if self._closed:
                    await supervisor.aclose()
                self._require_open()
                self._supervisor = supervisor
                if self._role == "worker":  # the page ends with its supervisor
                    keeper = asyncio.create_task(self._keep_supervisor(self._supervisor))
                    self._keepers.add(keeper)
                    keeper.add_done_callback(self._keepers.discard)
            return self._supervisor

    async def _call(self, body: SupervisorInbound) -> SupervisorOutbound:
        supervisor = await self._connected()
        if self._facts:  # so that whoever asks knows what was told before
            self._send_facts()
        return await supervisor.call(body)

    async def _acquire(
        self, spec: ModelSpec, options: LoadOptions, *, exact: bool = False, gone: str | None = None
    ) -> EngineAddress:
        answer = await self._call(AcquireModel(spec, options, exact, gone))
        assert isinstance(answer, EngineAddress)
        return answer

    async def _engine(self, spec: ModelSpec, options: LoadOptions) -> EngineConnection:
        engine = self._engines.get(spec.name)
        if engine is not None and not engine.closed and not engine.leaving:
            return engine
        address = (await self._acquire(spec, options, gone=engine.address if engine else None)).address
        async with self._engine_lock:
            engine = self._engines.get(spec.name)  # another request may have connected meanwhile
            if engine is None or engine.closed or engine.address != address:
                self._require_open()
                engine = await EngineConnection.open(spec.name, address)
                self._engines[spec.name] = engine
                self._open = {other for other in self._open if not other.closed} | {engine}
            return engine

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("The server is shutting down.", code="shutting_down", retry_after=5.0)
