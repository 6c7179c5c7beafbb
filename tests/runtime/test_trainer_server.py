"""A whole job in this process, on a disk that fills up at one write after another."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from mini_claude.data.database import Database
from mini_claude.data.dataset_store import DatasetStore
from mini_claude.data.datasets import DatasetRepository
from mini_claude.data.jobs import JobRepository
from mini_claude.data.models import ModelRepository
from mini_claude.data.records import Dataset, Job
from mini_claude.errors import StorageUnavailable
from mini_claude.runtime import patience
from mini_claude.runtime.job_report import JobReport
from mini_claude.runtime.launches import TrainerLaunch
from mini_claude.runtime.trainer_server import TrainerServer
from mini_claude.training.arguments import JobSpec, LoraSettings, TrainingArguments
from mini_claude.training.callbacks import CheckpointSaved
from mini_claude.types import ModelSource, ModelSpec
from mini_claude.utils.config import Settings

from ..postgresql import PostgreSQL
from ..training.faulty_disk import FaultyDisk
from ..training.tiny_adapters import save_base

OWNER = "me"
ROWS = b"".join(json.dumps([f"who {number}", "the cat"]).encode() + b"\n" for number in range(24))
ARGUMENTS = TrainingArguments(max_steps=3, save_steps=1, learning_rate=0.01, max_length=64)


class Workplace:
    """A data directory with a dataset, the model `tiny` and jobs of both."""

    def __init__(self, folder: Path, database_url: SecretStr | None = None) -> None:
        self.settings = Settings(data_dir=folder / "data", database_url=database_url)
        self.database = Database(self.settings.effective_database_url)
        self.database.migrate()
        self.jobs = JobRepository(self.database)
        source = ModelSource("folder", str(save_base(folder / "tiny")))
        ModelRepository(self.database).add(ModelSpec("tiny", "causal_lm", (source,)))
        self.sha256 = self._add_dataset()

    def _add_dataset(self) -> str:
        store = DatasetStore(self.settings.datasets_dir, 10**6, 10**6)
        incoming = store.begin()
        incoming.write(ROWS)
        sha256 = incoming.finish(".jsonl")
        with store.locked(), store.kept(incoming, {"sha256": sha256, "container": "jsonl"}):
            dataset = Dataset(
                "rows", OWNER, sha256, "rows.jsonl", "jsonl", "dialogue", len(ROWS), 24, 0, (), time.time()
            )
            DatasetRepository(self.database).add(dataset)
        incoming.discard()
        return sha256

    def submit(self, name: str) -> str:
        spec = JobSpec("tiny", "rows", self.sha256, name, LoraSettings(r=4), ARGUMENTS)
        return self.jobs.submit(OWNER, spec, name, None)[0].id

    def run(self, job_id: str) -> Job:
        """As the queue and a trainer process do it."""
        claimed = self.jobs.claim(1)
        assert claimed is not None
        assert claimed.id == job_id
        assert claimed.token is not None
        launch = TrainerLaunch(job_id, claimed.token, {}, "")
        TrainerServer(launch, self.settings, self.database).run()
        return self.jobs.get(OWNER, job_id)

    def told(self, job_id: str) -> list[str]:
        """The types of its events, without progress: how often that is told depends on the time."""
        return [event.type for event in self.jobs.events(OWNER, job_id, 0, 1000) if event.type != "progress"]

    def weights(self, job_id: str) -> bytes:
        return (self.settings.adapters_dir / job_id / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


def test_a_job_on_a_full_disk_says_so_and_ends_as_if_nothing_had_been_when_there_is_room(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = workplace.submit("one")
    with monkeypatch.context() as patch:
        disk = FaultyDisk(patch, workplace.settings.data_dir, None)
        assert workplace.run(undisturbed).state == "completed"
    total = disk.num_operations
    assert total > 40
    job_id = workplace.submit("two")
    for fails_at in (*range(1, total, total // 6), 3, 2, 1):  # late ones again: each run begins further on
        with monkeypatch.context() as patch:
            disk = FaultyDisk(patch, workplace.settings.data_dir, fails_at)
            job = workplace.run(job_id)
        if job.state == "completed":
            break
        assert job.error is not None
        assert (job.state, job.error[1].code) == ("failed", "disk_full"), job.error
        workplace.jobs.resume(OWNER, job_id)
    else:
        job = workplace.run(job_id)
    assert job.state == "completed"
    assert job.adapter == "tiny:two@1"
    assert workplace.weights(job_id) == workplace.weights(undisturbed)


def test_a_job_is_the_same_on_postgresql(workplace: Workplace, postgresql_url: str, tmp_path: Path) -> None:
    expected = workplace.run(workplace.submit("bot"))
    assert expected.state == "completed"
    other = Workplace(tmp_path / "other", SecretStr(postgresql_url))
    job = other.run(other.submit("bot"))
    assert (job.state, job.adapter, job.progress.keys()) == ("completed", "tiny:bot@1", expected.progress.keys())
    assert other.weights(job.id) == workplace.weights(expected.id)
    assert other.told(job.id) == workplace.told(expected.id)
    other.database.close()


@pytest.fixture
def on_a_server(own_postgresql: PostgreSQL, tmp_path: Path) -> Iterator[Workplace]:
    with own_postgresql.database() as url:
        workplace = Workplace(tmp_path, SecretStr(url))
        yield workplace
        workplace.database.close()


def stop_after_first_checkpoint(patch: pytest.MonkeyPatch, server: PostgreSQL) -> None:
    """As the trainer is about to tell of it."""
    tell = JobReport.on_checkpoint

    def stop_and_tell(report: JobReport, saved: CheckpointSaved) -> None:
        if saved.step == 1:
            server.stop()
        tell(report, saved)

    patch.setattr(JobReport, "on_checkpoint", stop_and_tell)


def pausing(patch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Whoever waits for the database calls this instead of sleeping."""
    patch.setattr(patience, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))


def test_a_job_waits_for_its_database_and_goes_on(
    on_a_server: Workplace, own_postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            own_postgresql.start()

    stop_after_first_checkpoint(monkeypatch, own_postgresql)
    pausing(monkeypatch, sleep)
    job = on_a_server.run(on_a_server.submit("bot"))
    assert (job.state, job.adapter, len(waits)) == ("completed", "tiny:bot@1", 3)
    events = on_a_server.jobs.events(OWNER, job.id, 0, 1000)
    assert [event.data["step"] for event in events if event.type == "checkpoint"] == [1, 2, 3]
    assert [event.data["state"] for event in events if event.type == "state"] == ["pending", "running", "completed"]


def test_a_job_whose_database_stays_away_goes_on_from_its_checkpoint(
    on_a_server: Workplace, own_postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = on_a_server.submit("bot")
    with monkeypatch.context() as patch:
        stop_after_first_checkpoint(patch, own_postgresql)
        patch.setattr(patience, "PATIENCE_SECONDS", 0.0)
        with pytest.raises(StorageUnavailable):
            on_a_server.run(job_id)
    own_postgresql.start()
    (job,) = on_a_server.jobs.running()
    assert job.token is not None
    on_a_server.jobs.interrupt(job.id, job.token, "as the queue does it")
    assert on_a_server.run(job_id).state == "completed"
    said = [event.data for event in on_a_server.jobs.events(OWNER, job_id, 0, 1000) if event.type == "log"]
    assert {"message": "Going on from the checkpoint of step 1."} in said
