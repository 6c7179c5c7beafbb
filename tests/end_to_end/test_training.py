"""Training jobs on a tiny random model, with everything around them real: server, supervisor, trainer, database."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from mini_claude.data.database import Database
from mini_claude.data.models import ModelRepository
from mini_claude.types import ModelSource, ModelSpec

from ..training.tiny_adapters import save_base
from .conftest import Server, serving, until

pytestmark = pytest.mark.timeout(400)
JOBS = "/api/v1/training/jobs"
ENDED = ("completed", "failed", "cancelled")
NUM_KILLS = 5
SEED = 20261124


@pytest.fixture
def tiny_data_dir(data_dir: Path, tmp_path: Path) -> Path:
    """A data directory that knows the model `tiny`."""
    database = Database(f"sqlite:///{data_dir / 'mini-claude.db'}")
    database.migrate()
    source = ModelSource("folder", str(save_base(tmp_path / "tiny")))
    ModelRepository(database).add(ModelSpec("tiny", "causal_lm", (source,)))
    database.close()
    return data_dir


def rows(number: int) -> bytes:
    pairs = [("the cat", "sat on the mat"), ("the dog", "ate the hat"), ("who", "the cat"), ("what", "a hat")]
    lines = []
    for index in range(number):
        question, answer = pairs[index % len(pairs)]
        messages = [{"role": "user", "content": f"{question} {index}"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines).encode()


def upload(server: Server, number: int = 24) -> None:
    answer = server.http.post("/api/v1/datasets", files={"file": ("rows.jsonl", rows(number))}, data={"name": "rows"})
    assert answer.status_code == 201, answer.text


def submit(server: Server, **arguments: object) -> str:
    training_args = {"max_steps": 6, "per_device_train_batch_size": 4, "max_length": 64, **arguments}
    body = {
        "dataset_path": "rows",
        "model_name": "tiny",
        "adapter_name": "bot",
        "training_args": {"learning_rate": 0.01, "num_train_epochs": 50, **training_args},
    }
    answer = server.http.post(JOBS, json=body)
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def job_of(server: Server, job_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = server.http.get(f"{JOBS}/{job_id}").json()
    return answer


def ended(server: Server, job_id: str, seconds: float = 180) -> dict[str, Any]:
    until(lambda: job_of(server, job_id)["state"] in ENDED, seconds, f"{job_id} has not ended")
    return job_of(server, job_id)


def events_of(server: Server, job_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = server.http.get(f"{JOBS}/{job_id}/progress", params={"limit": 1000}).json()["events"]
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    return events


def say(server: Server, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "the cat 1"}], "temperature": 0, "max_tokens": 8}
    answer = server.http.post("/api/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["response"]
    return text


def test_a_job_becomes_an_adapter_that_answers_beside_its_base(tiny_data_dir: Path) -> None:
    with serving(tiny_data_dir, preload="false") as server:
        upload(server)
        base = say(server, "tiny")
        job_id = submit(server, max_steps=20)
        job = ended(server, job_id)
        assert job["state"] == "completed", job
        assert job["adapter"] == "tiny:bot@1"
        kinds = [event["type"] for event in events_of(server, job_id)]
        assert {"started", "progress", "evaluation", "checkpoint", "certificate"} <= set(kinds)
        assert kinds[-1] == "state"
        assert say(server, "tiny:bot") == say(server, "tiny:bot@1") != base
        assert say(server, "tiny") == base
        assert server.http.delete("/api/v1/datasets/rows").status_code == 204
        names = [model["id"] for model in server.http.get("/v1/models").json()["data"]]
        assert "tiny:bot@1" in names


def test_a_job_survives_its_trainer_its_supervisor_and_its_server(tiny_data_dir: Path) -> None:
    """Killed at random moments, it ends with the weights of a run that nobody disturbed."""
    chance = random.Random(SEED)
    with serving(tiny_data_dir, preload="false") as server:
        upload(server)
        undisturbed = submit(server, max_steps=30, save_steps=2)
        assert ended(server, undisturbed)["state"] == "completed"
    job_id = None
    for cycle in range(NUM_KILLS):
        with serving(tiny_data_dir, preload="false") as server:
            job_id = job_id or submit(server, max_steps=30, save_steps=2)
            _until_further(server, job_id, chance.randint(1, 6))
            for victim in _training_processes(server)[: cycle % 3]:  # nobody, the trainer, its supervisor too
                os.kill(victim, signal.SIGKILL)
                _until_further(server, job_id, chance.randint(1, 6))
            for process in server.processes():
                process.kill()
    assert job_id is not None
    with serving(tiny_data_dir, preload="false") as server:
        job = ended(server, job_id)
        assert job["state"] == "completed", job["error"]
        assert job["adapter"] == "tiny:bot@2"
        states = [event["data"]["state"] for event in events_of(server, job_id) if event["type"] == "state"]
        assert states.count("completed") == 1
        weights = [
            (tiny_data_dir / "adapters" / each / "adapter_model.safetensors").read_bytes()
            for each in (undisturbed, job_id)
        ]
        assert weights[0] == weights[1]


def _until_further(server: Server, job_id: str, num_events: int) -> None:
    wanted = len(events_of(server, job_id)) + num_events
    until(
        lambda: len(events_of(server, job_id)) >= wanted or job_of(server, job_id)["state"] in ENDED,
        120,
        "the job stands still",
    )


def _training_processes(server: Server) -> list[int]:
    """The trainer's pid first, then the supervisor's."""
    found = []
    for name in ("mini_claude.runtime.trainer_server", "mini_claude.runtime.supervisor"):
        for process in server.processes():
            try:
                if name in process.cmdline():
                    found.append(process.pid)
            except psutil.NoSuchProcess:
                continue
    return found


def test_a_running_job_is_cancelled_after_its_step_and_goes_on_when_resumed(tiny_data_dir: Path) -> None:
    with serving(tiny_data_dir, preload="false") as server:
        upload(server)
        job_id = submit(server, max_steps=400, save_steps=5)
        until(lambda: job_of(server, job_id)["progress"], 90, "no step was taken")
        assert server.http.delete(f"{JOBS}/{job_id}").status_code == 200
        assert ended(server, job_id)["state"] == "cancelled"
        assert server.http.delete(f"{JOBS}/{job_id}").status_code == 409
        assert server.http.post(f"{JOBS}/{job_id}/resume").json()["state"] == "pending"
        assert server.http.delete("/api/v1/datasets/rows").status_code == 409
        until(lambda: job_of(server, job_id)["state"] == "running", 60, "it was not started again")
        server.http.delete(f"{JOBS}/{job_id}")
        assert ended(server, job_id)["state"] == "cancelled"
        assert any("Going on from the checkpoint" in str(event["data"]) for event in events_of(server, job_id))


def test_a_job_on_broken_rows_fails_with_the_row_and_its_reason(tiny_data_dir: Path) -> None:
    with serving(tiny_data_dir, preload="false") as server:
        data = rows(3) + b'\n{"messages": []}\n'
        server.http.post("/api/v1/datasets", files={"file": ("rows.jsonl", data)}, data={"name": "rows"})
        job = ended(server, submit(server, max_steps=1))
        assert job["state"] == "failed"
        assert job["error"]["code"] == "broken_rows"
        assert "4" in job["error"]["message"]
