"""`mini-claude train` and `mini-claude jobs ...`: what is asked of the server, and what a person sees of a job."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from mini_claude.errors import MiniClaudeError
from mini_claude.terminal import train
from mini_claude.utils.config import Settings

JOBS = "/api/v1/training/jobs"


def event(number: int, kind: str, **data: object) -> dict[str, Any]:
    return {"number": number, "type": kind, "data": data, "created_at": 0.0}


class ScriptedServer:
    """Answers with one job whose state moves on each time that its progress is asked for."""

    def __init__(self, *steps: tuple[str, dict[str, Any], list[dict[str, Any]]], error: str | None = None) -> None:
        self.calls: list[tuple[str, str, dict[str, Any] | None]] = []
        self._steps = list(steps)
        self._error = error

    def call(self, method: str, path: str, json: dict[str, Any] | None = None) -> dict[str, Any]:
        self.calls.append((method, path, json))
        if path.startswith("/api/v1/chat/"):
            assert json is not None
            return {"response": f"I am {json['model']}."}
        if path == JOBS and method == "GET":
            return {"jobs": [self._job(*step[:2]) for step in self._steps]}
        if "/progress" in path:
            step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
            if step[0] == "ctrl-c":
                raise KeyboardInterrupt
            after = int(path.rpartition("=")[2])
            return {"job": self._job(*step[:2]), "events": [each for each in step[2] if each["number"] > after]}
        return self._job("cancelled" if method == "DELETE" else self._steps[0][0], {})

    def _job(self, state: str, progress: dict[str, Any]) -> dict[str, Any]:
        done = state == "completed"
        return {
            "id": "job1",
            "state": state,
            "model_name": "tiny",
            "adapter_name": "bot",
            "dataset_path": "rows",
            "adapter": "tiny:bot@1" if done else None,
            "error": {"code": "x", "message": self._error} if self._error else None,
            "progress": progress,
            "started_at": 10.0,
            "ended_at": 75.0 if state in train.ENDED else None,
        }


RUN: tuple[tuple[str, dict[str, Any], list[dict[str, Any]]], ...] = (
    ("pending", {}, []),
    ("running", {"step": 1, "num_steps": 4, "loss": 2.5}, [event(1, "evaluation", step=0, eval_loss=3.0)]),
    ("running", {"step": 3, "num_steps": 4, "loss": 1.5, "tokens_per_second": 210.4}, []),
    ("running", {"step": 4, "num_steps": 4, "loss": 1.0}, [event(2, "evaluation", step=4, eval_loss=1.25)]),
    ("completed", {"step": 4, "num_steps": 4}, [event(3, "certificate", passed=True, reason="All forms agree.")]),
    ("completed", {"step": 4, "num_steps": 4, "loss": 1.0}, []),
)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr(train, "console", Console(file=shown, width=120))
    monkeypatch.setattr(train, "POLL_SECONDS", 0.0)
    return shown


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let commands find this server."""

    def set_server(server: ScriptedServer) -> ScriptedServer:
        @contextmanager
        def running(_settings: Settings) -> Iterator[ScriptedServer]:
            yield server

        monkeypatch.setattr(train, "running_server", running)
        monkeypatch.setattr(train, "upload", lambda _client, path, name: {"name": name or path.stem})
        return server

    return set_server


def run(*words: str) -> Result:
    app = typer.Typer()
    app.command()(train.train)
    app.add_typer(train.jobs_app, name="jobs")
    return CliRunner().invoke(app, list(words))


def test_a_job_is_watched_to_its_end(serve: Any, screen: io.StringIO) -> None:
    server = serve(ScriptedServer(*RUN))
    result = run("train", "rows")
    assert result.exception is None, result.exception
    said = screen.getvalue()
    assert "held-out loss 3.0000 at step 0" in said
    assert said.count("held-out loss 1.2500 at step 4") == 1
    assert "parity: All forms agree." in said
    assert "completed after 65 s" in said
    assert "mini-claude chat --model tiny:bot@1" in said
    assert server.calls[0][2] == {"dataset_path": "rows", "training_args": {}, "adapter_name": None}


def test_options_become_the_fields_of_the_job(serve: Any, screen: io.StringIO, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps(["Hi", "Yo"]))
    server = serve(ScriptedServer(*RUN))
    words = "--model tiny --name bot --epochs 2 --max-steps 5 --learning-rate 0.01 --batch-size 4 --rank 8"
    result = run("train", str(file), *words.split(), "--drop-broken-rows")
    assert result.exception is None, result.exception
    assert server.calls[0] == (
        "POST",
        JOBS,
        {
            "dataset_path": "talks",
            "model_name": "tiny",
            "adapter_name": "bot",
            "lora_config": {"r": 8, "lora_alpha": 16},
            "training_args": {
                "num_train_epochs": 2.0,
                "max_steps": 5,
                "learning_rate": 0.01,
                "per_device_train_batch_size": 4,
                "drop_broken_rows": True,
            },
        },
    )


def test_the_demo_asks_the_base_and_the_tuned_model(serve: Any, screen: io.StringIO) -> None:
    serve(ScriptedServer(*RUN))
    assert run("train", "--demo").exception is None
    said = screen.getvalue()
    assert "Who are you?  I am tiny." in said
    assert "Who are you?  I am tiny:bot@1." in said


def test_a_job_that_fails_is_an_error_with_its_reason(serve: Any, screen: io.StringIO) -> None:
    serve(ScriptedServer(("failed", {}, []), error="The loss is not finite at step 3."))
    result = run("train", "rows")
    assert isinstance(result.exception, MiniClaudeError)
    assert "not finite at step 3" in result.exception.message


def test_ctrl_c_stops_watching_and_not_the_job(serve: Any, screen: io.StringIO) -> None:
    server = serve(ScriptedServer(RUN[0], ("ctrl-c", {}, [])))
    assert run("train", "rows").exit_code == 0
    assert "mini-claude jobs show job1" in screen.getvalue()
    assert "DELETE" not in {method for method, _, _ in server.calls}


def test_without_data_it_says_what_to_name(serve: Any, screen: io.StringIO) -> None:
    server = serve(ScriptedServer(*RUN))
    result = run("train")
    assert isinstance(result.exception, MiniClaudeError)
    assert "--demo" in result.exception.message
    assert server.calls == []


def test_jobs_are_listed_cancelled_and_resumed(serve: Any, screen: io.StringIO) -> None:
    server = serve(ScriptedServer(RUN[2], RUN[5]))
    run("jobs", "list")
    rows = [line.split() for line in screen.getvalue().splitlines()]
    assert rows[1] == ["job1", "running", "tiny", "bot", "rows", "3/4"]
    assert rows[2] == ["job1", "completed", "tiny", "tiny:bot@1", "rows", "4/4"]
    run("jobs", "cancel", "job1")
    assert server.calls[-1][:2] == ("DELETE", f"{JOBS}/job1")
    run("jobs", "resume", "job1")
    assert ("POST", f"{JOBS}/job1/resume", None) in server.calls
    assert "completed after 65 s" in screen.getvalue()
