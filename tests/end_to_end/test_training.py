"""Training jobs on a tiny random model, with everything around them real: server, supervisor, trainer, database."""

import io
import json
import random
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mini_claude.data.database import Database
from mini_claude.data.models import ModelRepository
from mini_claude.types import ModelSource, ModelSpec

from ..torture.sizes import Sizes, at_both_sizes
from ..training.tiny_adapters import save_base, save_dialogpt
from ..training.tiny_gguf import save_gguf
from .conftest import Server, serving, until

JOBS = "/api/v1/training/jobs"
ADAPTERS = "/api/v1/models/adapters"
ENDED = ("completed", "failed", "cancelled")
NUM_STEPS = 60
pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]
SEED = 20261124


@pytest.fixture
def tiny_data_dir(data_dir: Path, tmp_path: Path) -> Path:
    """A data directory that knows the models `tiny` and `dialogpt-tiny`."""
    source = ModelSource("folder", str(save_base(tmp_path / "tiny")))
    register(data_dir, ModelSpec("tiny", "causal_lm", (source,)))
    source = ModelSource("folder", str(save_dialogpt(tmp_path / "dialogpt")))
    register(data_dir, ModelSpec("dialogpt-tiny", "dialogpt", (source,)))
    return data_dir


def register(data_dir: Path, spec: ModelSpec) -> None:
    database = Database(f"sqlite:///{data_dir / 'mini-claude.db'}")
    database.migrate()
    ModelRepository(database).add(spec)
    database.close()


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


def submit(server: Server, model: str = "tiny", **arguments: object) -> str:
    training_args = {"max_steps": 6, "per_device_train_batch_size": 4, "max_length": 64, **arguments}
    body = {
        "dataset_path": "rows",
        "model_name": model,
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


def test_llama_cpp_serves_an_adapter_as_soon_as_it_is_trained(tiny_data_dir: Path, tmp_path: Path) -> None:
    """The engine was loaded before the adapter existed, goes on, and answers for both in turns."""
    unpacked = save_base(tiny_data_dir / "models" / "gguf-tiny")
    source = ModelSource("gguf", str(save_gguf(unpacked, tmp_path / "tiny.gguf")))
    register(tiny_data_dir, ModelSpec("gguf-tiny", "causal_lm", (source,)))
    with serving(tiny_data_dir, preload="false", engine="auto") as server:
        upload(server)
        base = say(server, "gguf-tiny")
        ready = server.http.get("/api/v1/models/gguf-tiny").json()
        assert (ready["engine"], ready["dtype"]) == ("llama_cpp", "f32")
        job = ended(server, submit(server, "gguf-tiny", max_steps=20))
        assert job["state"] == "completed", job
        assert say(server, "gguf-tiny:bot") == say(server, "gguf-tiny:bot@1") != base
        assert say(server, "gguf-tiny") == base
        assert server.http.get("/api/v1/models/gguf-tiny").json()["pid"] == ready["pid"]


@at_both_sizes
def test_jobs_survive_every_kill_and_end_as_undisturbed_ones(tiny_data_dir: Path, sizes: Sizes) -> None:
    """Trainer, supervisor, server or all at once, killed at random moments: no job is lost, doubled or stuck, and the
    weights of each are those of a run that nobody disturbed, bit for bit."""
    chance = random.Random(SEED)
    victims = [*("trainer", "supervisor", "server", "everything") * (sizes.kills // 4)]
    chance.shuffle(victims)
    finished: list[str] = []
    job_id = None
    with ExitStack() as servers:
        server = servers.enter_context(serving(tiny_data_dir, preload="false"))
        upload(server)
        undisturbed = submit(server, max_steps=NUM_STEPS, save_steps=2)
        assert ended(server, undisturbed)["state"] == "completed"
        for victim in victims:
            if job_id is None or job_of(server, job_id)["state"] in ENDED:
                finished += [job_id] if job_id else []
                job_id = submit(server, max_steps=NUM_STEPS, save_steps=2)
            _until_further(server, job_id, chance.randint(1, 12))
            until(lambda: _kill(server, victim) or job_of(server, job_id)["state"] in ENDED, 60, f"no {victim}")  # noqa: B023
            if victim in ("server", "everything"):
                server.process.wait()
                server = servers.enter_context(serving(tiny_data_dir, preload="false"))
        assert job_id is not None
        finished.append(job_id)
        jobs = [ended(server, each) for each in finished]
        assert [job["state"] for job in jobs] == ["completed"] * len(jobs), jobs
        weights = {
            (tiny_data_dir / "adapters" / each / "adapter_model.safetensors").read_bytes()
            for each in (undisturbed, *finished)
        }
        assert [job["adapter"] for job in jobs] == [f"tiny:bot@{2 + number}" for number in range(len(jobs))]
        assert len(weights) == 1
        for each in finished:
            states = [event["data"]["state"] for event in events_of(server, each) if event["type"] == "state"]
            assert states.count("completed") == 1
        stored = server.http.get(JOBS).json()["jobs"]
        assert {job["id"] for job in stored} == {undisturbed, *finished}


def test_a_comparison_that_is_killed_is_done_again_and_fails_no_job(tiny_data_dir: Path) -> None:
    with serving(tiny_data_dir, preload="false") as server:
        upload(server)
        job_id = submit(server)
        until(lambda: _kill(server, "comparison"), 90, "no comparison was begun")
        job = ended(server, job_id)
        assert job["state"] == "completed", job
        assert any("it is done again" in str(event["data"]) for event in events_of(server, job_id))


def _kill(server: Server, victim: str) -> bool:
    """With SIGKILL; False when nobody was there to be killed."""
    processes = server.processes()
    if victim == "server":
        processes = {process for process in processes if process.pid == server.process.pid}
    elif victim != "everything":
        word = {
            "trainer": "mini_claude.runtime.trainer_server",
            "supervisor": "mini_claude.runtime.supervisor",
            "comparison": "verify_adapter",
        }[victim]
        processes = {process for process in processes if word in _command_line(process)}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return bool(processes)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _until_further(server: Server, job_id: str, num_events: int) -> None:
    wanted = len(events_of(server, job_id)) + num_events
    until(
        lambda: len(events_of(server, job_id)) >= wanted or job_of(server, job_id)["state"] in ENDED,
        120,
        "the job stands still",
    )


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


def test_a_job_that_takes_too_long_ends_with_what_it_has_learned(tiny_data_dir: Path) -> None:
    with serving(tiny_data_dir, preload="false", max_training_hours="1e-9") as server:
        upload(server)
        job_id = submit(server, method="full", max_steps=1000, learning_rate=0.1, warmup_ratio=0)
        job = ended(server, job_id)
        assert (job["state"], job["adapter"]) == ("completed", "bot"), job
        told = [event["data"].get("message", "") for event in events_of(server, job_id)]
        assert any("Ended after step 1:" in message for message in told), told
        assert say(server, "bot") != say(server, "tiny")


def test_a_job_that_takes_too_much_memory_fails_alone_and_says_what_to_change(
    tiny_data_dir: Path, tmp_path: Path
) -> None:
    """All weights of a wide model: with gradients and moments four times what it has."""
    wide = save_base(tmp_path / "wide", intermediate_size=40_960)
    register(tiny_data_dir, ModelSpec("wide", "causal_lm", (ModelSource("folder", str(wide)),)))
    with serving(tiny_data_dir, preload="false", max_training_gb="0.15") as server:
        upload(server)
        job = ended(server, submit(server, "wide", method="full"))
        assert (job["state"], job["error"]["code"]) == ("failed", "insufficient_memory"), job["error"]
        assert "0.15 GB" in job["error"]["message"]
        assert "per_device_train_batch_size" in job["error"]["message"]
        assert say(server, "tiny")


def test_dialogpt_learns_is_served_and_verified_like_any_other_model(tiny_data_dir: Path) -> None:
    with serving(tiny_data_dir, preload="false") as server:
        upload(server, 8)
        base = say(server, "dialogpt-tiny")
        job = ended(server, submit(server, "dialogpt-tiny", max_steps=60))
        assert job["state"] == "completed", job
        assert job["adapter"] == "dialogpt-tiny:bot@1"
        answer = server.http.post(f"{ADAPTERS}/dialogpt-tiny:bot/verify", timeout=200)
        assert answer.json()["certificate"]["passed"], answer.text
        assert say(server, "dialogpt-tiny:bot") == "sat on the mat" != base


def test_an_adapter_leaves_for_peft_and_comes_back_as_it_was(tiny_data_dir: Path, tmp_path: Path) -> None:
    with serving(tiny_data_dir, preload="false") as server:
        upload(server)
        assert ended(server, submit(server, max_steps=20))["state"] == "completed"
        packed = server.http.post(f"{ADAPTERS}/tiny:bot/export", json={}, timeout=60)
        assert packed.status_code == 200, packed.text
        with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
            archive.extractall(tmp_path / "out")
        (folder,) = (tmp_path / "out").iterdir()
        names = {"config": "adapter_config.json", "weights": "adapter_model.safetensors"}
        files = {part: (folder / name).read_bytes() for part, name in names.items()}
        answer = server.http.post(ADAPTERS, files=files, data={"name": "copy", "model": "tiny"}, timeout=60)
        assert answer.json()["reference"] == "tiny:copy@1"
        assert say(server, "tiny:copy") == say(server, "tiny:bot") != say(server, "tiny")
