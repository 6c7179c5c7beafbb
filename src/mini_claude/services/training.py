"""Training jobs: what may be submitted, and how one is watched, cancelled and resumed.

A job is a row before anything happens; the supervisor's queue (runtime/job_queue.py) starts it, its trainer reports to
the database, and whoever watches reads from there. So any worker can show any job, and nothing is lost with a process.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

import msgspec
from anyio.to_thread import run_sync

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.database import Database
from mini_claude.data.datasets import DatasetRepository
from mini_claude.data.jobs import ENDED, JobRepository
from mini_claude.data.records import Job, JobEvent
from mini_claude.errors import Conflict, Forbidden, InvalidRequest, NotFound
from mini_claude.models.catalog import valid_model_name
from mini_claude.services.engine_choice import EngineChoice
from mini_claude.services.identity import Caller
from mini_claude.services.models import ModelService
from mini_claude.training.arguments import JobSpec, LoraSettings, TrainingArguments, check_trainable

POLL_SECONDS: Final = 0.25
EVENTS_PER_READ: Final = 500


class TrainingService:
    """Jobs of all callers; each sees their own."""

    def __init__(
        self, database: Database, datasets: DatasetRepository, models: ModelService, engine_choice: EngineChoice
    ) -> None:
        self._jobs = JobRepository(database)
        self._adapters = AdapterRepository(database)
        self._datasets = datasets
        self._models = models
        self._engine_choice = engine_choice
        self._in_memory = database.in_memory

    async def submit(
        self,
        caller: Caller,
        *,
        model: str | None,
        dataset: str,
        adapter: str | None,
        lora: LoraSettings,
        arguments: TrainingArguments,
        idempotency_key: str | None = None,
    ) -> tuple[Job, bool]:
        """A new pending job, and whether it is new (see `JobRepository.submit`).

        Raises `NotFound` (model, dataset), `Forbidden`, `InvalidRequest`, `Conflict` for an adapter's name that is
        another owner's, `IdempotencyKeyReused`.
        """
        if self._in_memory:
            raise InvalidRequest(
                "database_url = sqlite:// keeps everything in this worker's memory, where no trainer can see its job; "
                "leave database_url out to use a file.",
                code="database_in_memory",
            )
        with _told_as("model_name"):
            spec = await self._models.trainable(caller, model)
        if spec.name != model and model is not None and ":" in model:
            raise InvalidRequest("Train a base model; continuing an adapter is not supported.", param="model_name")
        with _told_as("dataset_path"):
            data = await run_sync(self._datasets.find, caller.owner, dataset)
        name = adapter or data.name
        if not valid_model_name(name):
            raise InvalidRequest(
                f"{name[:80]!r} cannot name an adapter: use up to 64 lower-case letters, digits, '.', '_' and '-', "
                "not starting with a dot.",
                param="adapter_name",
            )
        check_trainable(lora, arguments)
        if lora.use_dora and arguments.method == "lora" and await self._engine_choice.is_llama_cpp(spec):
            raise InvalidRequest(
                f"llama.cpp, which serves {spec.name} here, has no DoRA; leave use_dora out, or set engine to torch.",
                param="lora_config.use_dora",
            )
        with _told_as("adapter_name"):
            await run_sync(self._adapters.require_free, caller.owner, spec.name, name)
        job = JobSpec(spec.name, data.name, data.sha256, name, lora, arguments)
        body = hashlib.sha256(msgspec.json.encode(asdict(job), order="sorted")).hexdigest()
        return await run_sync(self._jobs.submit, caller.owner, job, body, idempotency_key)

    async def get(self, caller: Caller, job_id: str) -> Job:
        """One job. Raises `NotFound`."""
        return await run_sync(self._jobs.get, caller.owner, job_id)

    async def list(self, caller: Caller, limit: int) -> Sequence[Job]:
        """Newest first."""
        return await run_sync(self._jobs.list, caller.owner, limit)

    async def cancel(self, caller: Caller, job_id: str) -> Job:
        """End a waiting job now, a running one after its step. Raises `NotFound`, `Conflict`."""
        return await run_sync(self._jobs.cancel, caller.owner, job_id)

    async def resume(self, caller: Caller, job_id: str) -> Job:
        """Let a failed or cancelled job go on from its last checkpoint. Raises `NotFound`, `Forbidden`, `Conflict`."""
        await self._models.trainable(caller, (await self.get(caller, job_id)).spec.model_name)
        return await run_sync(self._jobs.resume, caller.owner, job_id)

    async def events(self, caller: Caller, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
        """Events with a number above `after`. Raises `NotFound`."""
        return await run_sync(self._jobs.events, caller.owner, job_id, after, limit)

    async def follow(self, caller: Caller, job_id: str, after: int) -> AsyncIterator[JobEvent]:
        """Events after that number, past ones first, then live until the job has ended. Raises `NotFound`."""
        while True:
            job = await self.get(caller, job_id)
            events = await self.events(caller, job_id, after, EVENTS_PER_READ)
            for event in events:
                after = event.number
                yield event
            if not events:
                if job.state in ENDED:  # read before the events, so that its last one has been seen
                    return
                await asyncio.sleep(POLL_SECONDS)


@contextmanager
def _told_as(field: str) -> Iterator[None]:
    """Errors about what a field names carry the field's name."""
    try:
        yield
    except (NotFound, Forbidden, Conflict) as error:
        error.param = field
        raise
