"""Which training jobs run: starts a trainer process for each that waits, and notices those whose trainer is gone.

All it knows is in the database, so that the next supervisor goes on where this one was killed. Trainers are not
children in the sense of engines: they outlive us, are known by pid and start time, and report to the database.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from anyio.to_thread import run_sync

from mini_claude.data.database import Database
from mini_claude.data.dataset_store import DatasetStore
from mini_claude.data.host import host_of
from mini_claude.data.jobs import JobRepository
from mini_claude.data.records import Job
from mini_claude.errors import StorageError
from mini_claude.runtime.child import start_child
from mini_claude.runtime.launches import TrainerLaunch
from mini_claude.runtime.liveness import ProcessIdentity
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

TICK_SECONDS: Final = 0.5
START_SECONDS: Final = 60.0  # from claiming a job to its trainer's first word


class JobQueue:
    """Watches the jobs of one data directory."""

    def __init__(self, settings: Settings, jobs: JobRepository, host: str | None) -> None:
        self._settings = settings
        self._jobs = jobs
        self._host = host
        self._starting: dict[str, asyncio.subprocess.Process] = {}  # by token
        self._deadlines: dict[str, float] = {}  # by token: when a trainer that said nothing counts as dead
        self._seen: tuple[int, ...] | None = None  # the version of the database that was looked at last
        self.busy = False  # a job waits or runs: the supervisor has a reason to live

    @classmethod
    def open(cls, settings: Settings) -> "JobQueue | None":
        """None where the database is in one worker's memory: jobs need one that outlives processes.

        Raises `StorageError`, and `InvalidRequest` for a database_url that cannot work.
        """
        database = Database(settings.effective_database_url)
        if database.in_memory:
            database.close()
            return None
        database.migrate()
        return cls(settings, JobRepository(database), host_of(database, settings.data_dir))

    async def run(self) -> None:
        """Until cancelled. Trainers that run then go on."""
        while True:
            try:
                await self._tick()
            except StorageError as error:  # a full disk must not end the supervisor; it is tried again
                log.warning("jobs.storage", error=error.message)
            await asyncio.sleep(TICK_SECONDS)

    async def _tick(self) -> None:
        version = self._jobs.version()
        if not self.busy and version is not None and version == self._seen:
            return  # nothing at all was stored since
        running = await run_sync(self._jobs.running, self._host)
        for job in running:
            assert job.token is not None
            if (reason := self._gone(job, job.token)) is not None:
                log.warning("trainer.gone", job_id=job.id, pid=job.pid, reason=reason)
                by_itself = job.token in self._starting  # else it died with the supervisor that started it
                await run_sync(partial(self._jobs.interrupt, job.id, job.token, reason, by_itself=by_itself))
        self._forget(running)
        while (claimed := await run_sync(self._claim)) is not None:
            await self._start(claimed)
        self.busy = await run_sync(self._jobs.any_open, self._host)
        self._seen = version

    def _claim(self) -> Job | None:
        own = self._settings
        datasets = DatasetStore(own.datasets_dir, own.max_dataset_bytes, own.dataset_quota_bytes)
        return self._jobs.claim(own.max_running_jobs, self._host, lambda sha256: datasets.manifest(sha256) is not None)

    def _gone(self, job: Job, token: str) -> str | None:
        """Why the trainer of a running job is taken for dead, or None."""
        if job.pid is not None and job.pid_started is not None:
            alive = ProcessIdentity(job.pid, job.pid_started).alive()
            return None if alive else "The trainer process ended without a word."
        process = self._starting.get(token)
        if process is not None and process.returncode is not None:
            return f"The trainer process ended with exit code {process.returncode} while it started."
        now = asyncio.get_running_loop().time()
        # Also for one that another supervisor started: of that one we have no process to ask.
        deadline = self._deadlines.setdefault(token, now + START_SECONDS)
        return None if now < deadline else f"The trainer process did not come up within {START_SECONDS:.0f} s."

    def _forget(self, running: Sequence[Job]) -> None:
        tokens = {job.token for job in running}
        for known in (self._deadlines, self._starting):
            for token in known.keys() - tokens:
                del known[token]

    async def _start(self, job: Job) -> None:
        assert job.token is not None
        settings: dict[str, Any] = self._settings.model_dump(mode="json", exclude={"database_url", "limits_url"})
        launch = TrainerLaunch(job.id, job.token, settings, self._settings.effective_database_url)
        process = await start_child("mini_claude.runtime.trainer_server", launch)
        assert process.stdin is not None
        process.stdin.close()  # a trainer outlives us
        self._starting[job.token] = process
        log.info("trainer.started", job_id=job.id, pid=process.pid, attempt=job.attempts)
