"""The last five minutes of the machine and of the product's processes, looked at once for all visitors."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from mini_claude.errors import MiniClaudeError
from mini_claude.runtime.messages import RuntimeStatus
from mini_claude.runtime.runtime import Runtime
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

SAMPLE_SECONDS: Final = 2.0
HISTORY_SECONDS: Final = 300.0
RATE_SAMPLES: Final = 3  # engines report about once a second, so a rate over less would jump


@dataclass(frozen=True, slots=True)
class Sample:
    """What was so at one moment. `at` is Unix time; `cpu` is the share of all cores in percent since the one before;
    `generated` counts each engine's tokens since it started; cache figures are in tokens, of all engines together."""

    at: float
    cpu: float
    memory_used: int
    memory_total: int
    processes: Mapping[str, int]  # resident bytes by role; processes of one role together
    gpus: Mapping[str, tuple[int, int]]  # used and total bytes by name
    running: int
    waiting: int
    generated: Mapping[str, int]
    kv_used: int
    kv_cached: int
    kv_total: int


class SystemHistory:
    """Samples of this process's life, begun by whoever looks first. Belongs to one event loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._samples: deque[Sample] = deque(maxlen=int(HISTORY_SECONDS / SAMPLE_SECONDS))
        self._task: asyncio.Task[None] | None = None

    @property
    def samples(self) -> Sequence[Sample]:
        """Oldest first. Moments at which no supervisor answered are missing."""
        return tuple(self._samples)

    async def start(self) -> None:
        """Look now, and from then on every two seconds; does nothing the second time."""
        if self._task is None:
            psutil.cpu_percent(None)  # the first call has nothing to compare with
            self._task = asyncio.create_task(self._run())
            await self.look()

    async def look(self) -> None:
        """Take one sample."""
        try:
            self._samples.append(_sample(await self._runtime.status()))
        except MiniClaudeError as error:
            log.info("system.not_sampled", code=error.code)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            await self.look()


def _sample(status: RuntimeStatus) -> Sample:
    memory = psutil.virtual_memory()
    processes: dict[str, int] = {}
    for process in status.processes:
        processes[process.role] = processes.get(process.role, 0) + process.rss_bytes
    engines = status.engines.values()
    return Sample(
        at=time.time(),
        cpu=psutil.cpu_percent(None),
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        processes=processes,
        gpus={f"GPU {gpu.index} {gpu.name}": (gpu.used_bytes, gpu.total_bytes) for gpu in status.gpus},
        running=sum(engine.running for engine in engines),
        waiting=sum(engine.waiting for engine in engines),
        generated={name: engine.generated_tokens_total for name, engine in status.engines.items()},
        kv_used=sum(engine.kv_tokens_used for engine in engines),
        kv_cached=sum(engine.kv_tokens_cached for engine in engines),
        kv_total=sum(engine.kv_tokens_total for engine in engines),
    )


def token_rates(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """(time, tokens per second of all engines) from the counters' differences over about six seconds.

    An engine that was started anew counts from 0 again: what it has counted is then the difference.
    """
    rates = []
    for index in range(1, len(samples)):
        newer, older = samples[index], samples[max(0, index - RATE_SAMPLES)]
        counted = sum(_more(total, older.generated.get(name, 0)) for name, total in newer.generated.items())
        rates.append((newer.at, counted / (newer.at - older.at)))
    return rates


def _more(total: int, before: int) -> int:
    return total - before if total >= before else total
