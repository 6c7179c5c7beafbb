"""Queues of two hosts over one PostgreSQL: each has a data directory, and trainers that the other one cannot see."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mini_claude.data.database import Database
from mini_claude.data.datasets import DatasetRepository
from mini_claude.data.jobs import JobRepository
from mini_claude.data.records import Dataset, Job
from mini_claude.runtime.job_queue import JobQueue
from mini_claude.training.arguments import JobSpec, LoraSettings, TrainingArguments
from mini_claude.utils.config import Settings

ME = "me"
SHA256 = "a" * 64
NO_PROCESS = (2**22 + 1, 1.0)  # no Linux gives a process this pid


@pytest.fixture
def jobs(postgresql_url: str) -> Iterator[JobRepository]:
    database = Database(postgresql_url)
    DatasetRepository(database).add(Dataset("rows", ME, SHA256, "rows.jsonl", "jsonl", "messages", 10, 1, 0, (), 1.0))
    yield JobRepository(database)
    database.close()


@pytest.fixture
def queues(postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[JobQueue]]:
    """Of two hosts; they start no process."""

    async def started(job: object) -> None:
        """As far as the database knows."""

    opened = []
    for name in ("one", "two"):
        queue = JobQueue.open(Settings(data_dir=tmp_path / name, database_url=postgresql_url))
        assert queue is not None
        monkeypatch.setattr(queue, "_start", started)
        opened.append(queue)
    yield opened
    for queue in opened:
        queue._jobs._database.close()


def put_data(folder: Path) -> None:
    content = folder / "datasets" / SHA256
    content.mkdir(parents=True)
    (content / "manifest.json").write_text(json.dumps({"container": "jsonl"}))


async def test_a_job_runs_where_its_data_is_and_only_that_host_judges_its_trainer(
    jobs: JobRepository, queues: list[JobQueue], tmp_path: Path
) -> None:
    one, two = queues
    put_data(tmp_path / "one")
    job = jobs.submit(ME, JobSpec("tiny", "rows", SHA256, "bot", LoraSettings(), TrainingArguments()), "b", None)[0]
    await two._tick()
    assert jobs.get(ME, job.id).state == "pending"
    await one._tick()
    running = jobs.get(ME, job.id)
    assert (running.state, running.attempts) == ("running", 1)
    assert running.token is not None
    jobs.begin(job.id, running.token, *NO_PROCESS)
    await two._tick()
    assert jobs.get(ME, job.id).token == running.token
    assert (one.busy, two.busy) == (True, False)
    await one._tick()  # its own trainer has died: the next one takes over
    again = jobs.get(ME, job.id)
    assert again.state == "running"
    assert again.token not in (None, running.token)


async def test_nothing_is_looked_up_while_nothing_is_stored_and_no_job_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path)
    queue = JobQueue.open(settings)
    assert queue is not None
    looks: list[str | None] = []

    def looked(host: str | None) -> Sequence[Job]:
        looks.append(host)
        return running(host)

    async def started(job: Job) -> None:
        """As far as the database knows."""

    running = queue._jobs.running
    monkeypatch.setattr(queue._jobs, "running", looked)
    monkeypatch.setattr(queue, "_start", started)

    async def num_looks() -> int:
        before = len(looks)
        for _ in range(5):
            await queue._tick()
        return len(looks) - before

    database = Database(settings.effective_database_url)
    jobs = JobRepository(database)
    assert await num_looks() == 1
    DatasetRepository(database).add(Dataset("rows", ME, SHA256, "rows.jsonl", "jsonl", "messages", 10, 1, 0, (), 1.0))
    spec = JobSpec("tiny", "rows", SHA256, "bot", LoraSettings(), TrainingArguments())
    jobs.cancel(ME, jobs.submit(ME, spec, "b", None)[0].id)
    assert (await num_looks(), queue.busy) == (1, False)
    jobs.submit(ME, spec, "b", None)
    assert (await num_looks(), queue.busy) == (5, True)  # it runs, and its trainer may die
    database.close()
    queue._jobs._database.close()
