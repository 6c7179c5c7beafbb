"""What a user can start and what an accident can kill: every way to serve, and nothing left behind."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from .conftest import Server, serving, until

UVICORN = ("uvicorn", "mini_claude.web.api:app", "--host", "0.0.0.0", "--port", "{port}")
ECHO = {"engine": "echo"}


def say(server: Server, content: str = "hello", **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}], **fields}
    return server.http.post("/api/v1/chat/completions", json=body)


@pytest.mark.parametrize("command", [(), (*UVICORN, "--workers", "4"), (*UVICORN, "--reload")])
def test_every_way_to_serve_answers_and_leaves_nothing(data_dir: Path, command: tuple[str, ...]) -> None:
    with serving(data_dir, *command, **ECHO) as server:
        assert say(server).json()["response"]


def test_workers_share_one_engine_and_see_the_same_sessions(data_dir: Path) -> None:
    with serving(data_dir, **ECHO, workers="4") as server:
        until(lambda: len(server.pids("worker")) == 4, 30, "four workers")
        session_id = say(server, session_id="new").json()["session_id"]
        for _ in range(20):  # a new connection each time: the kernel hands them to any worker
            with httpx.Client(base_url=server.url) as http:
                body = {"messages": [{"role": "user", "content": "again"}], "session_id": session_id}
                assert http.post("/api/v1/chat/completions", json=body).status_code == 200
        assert len(server.pids("engine:smollm2-135m")) == 1
        turns = server.http.get(f"/api/v1/chat/sessions/{session_id}").json()["turns"]
        assert len(turns) == 42


@pytest.mark.parametrize("workers", ["1", "4"])
@pytest.mark.parametrize("victim", ["main", "supervisor", "engine:smollm2-135m", "worker"])
def test_nothing_is_left_when_any_process_was_killed(data_dir: Path, workers: str, victim: str) -> None:
    with serving(data_dir, **ECHO, workers=workers) as server:
        until(lambda: server.pids("engine:smollm2-135m"), 30, "the engine")
        everybody = server.processes()
        os.kill(server.process.pid if victim == "main" else server.pids(victim)[0], signal.SIGKILL)
        if victim == "main":
            server.process.wait()
            until(lambda: not server.processes(), 20, "processes outlive the main one")
        elif victim != "worker" or workers == "4":
            until(lambda: _answers(server), 20, "no answer after the kill")
        assert everybody


def _answers(server: Server) -> bool:
    try:
        return say(server).status_code == 200
    except httpx.TransportError:
        return False


def test_a_port_in_use_is_one_sentence_with_the_way_out(data_dir: Path, tmp_path: Path) -> None:
    with serving(data_dir, **ECHO) as server:
        port = server.url.rpartition(":")[2]
        with (
            pytest.raises(AssertionError, match=f"Port {port} is in use") as caught,
            serving(tmp_path / "other", "mini_claude.cli", "serve", "--port", port),
        ):
            raise RuntimeError("it answered, but that was the other server")
        assert "Traceback" not in str(caught.value)
