"""`mini-claude` as a whole: what it refuses to start, and that errors are sentences."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvicorn
from typer.testing import CliRunner

from mini_claude import cli
from mini_claude.terminal import keys
from mini_claude.utils.waiting_server import WaitingServer


@dataclass
class Outcome:
    """How a command ended. `started` holds what uvicorn was told when it got that far."""

    code: int
    out: str
    err: str
    started: dict[str, Any] | None

    @property
    def sentence(self) -> str:
        """The error of a command that failed as it should."""
        assert self.code == 1
        assert self.started is None
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err.removeprefix("error: ").strip()


RunCommand = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of the test's own; `serve` writes its options into the environment, so all of that is put back."""
    monkeypatch.chdir(tmp_path)
    unwanted = ("MINI_CLAUDE_", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS")
    others = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    on_sigterm = signal.getsignal(signal.SIGTERM)  # `serve` ends well by it
    own = {"MINI_CLAUDE_DATA_DIR": str(tmp_path / "data"), "MINI_CLAUDE_ENGINE": "echo"}
    with mock.patch.dict(os.environ, others | own, clear=True):
        yield
    signal.signal(signal.SIGTERM, on_sigterm)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Run a command in this process, with a uvicorn that only remembers what it was told."""

    def run_command(*words: str, **settings: object) -> Outcome:
        for name, value in settings.items():
            os.environ[f"MINI_CLAUDE_{name.upper()}"] = str(value)
        started: list[dict[str, Any]] = []

        def come_up(server: WaitingServer) -> None:
            started.append(vars(server.config))
            server.started = True

        monkeypatch.setattr(uvicorn, "run", lambda app, **options: started.append({"app": app, **options}))
        monkeypatch.setattr(WaitingServer, "run", come_up)
        monkeypatch.setattr(sys, "argv", ["mini-claude", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err, started[0] if started else None)

    return run_command


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2"])
def test_the_network_is_not_served_without_a_key(run: RunCommand, free_port: int, host: str) -> None:
    sentence = run("serve", "--host", host, "--port", str(free_port)).sentence
    assert "`mini-claude keys create NAME`" in sentence
    assert "--allow-unauthenticated-network" in sentence
    assert host in sentence


def test_the_network_is_served_once_there_is_a_key_or_when_told_so(run: RunCommand, free_port: int) -> None:
    words = ("serve", "--host", "0.0.0.0", "--port", str(free_port))
    told = run(*words, "--allow-unauthenticated-network")
    assert told.started is not None
    del os.environ["MINI_CLAUDE_ALLOW_UNAUTHENTICATED_NETWORK"]
    assert "keys create" in run(*words).sentence
    assert CliRunner().invoke(keys.app, ["create", "me"]).exit_code == 0
    assert run(*words).started is not None


@pytest.mark.parametrize(("host", "workers"), [("127.0.0.1", 3), ("localhost", 1), ("127.8.9.1", 1)])
def test_this_machine_is_served_without_a_key(run: RunCommand, free_port: int, host: str, workers: int) -> None:
    outcome = run("serve", "--host", host, "--port", str(free_port), "--workers", str(workers))
    assert outcome.code == 0
    assert outcome.started is not None
    assert {name: outcome.started[name] for name in ("app", "host", "port", "workers", "access_log")} == {
        "app": "mini_claude.web.api:app",
        "host": host,
        "port": free_port,
        "workers": workers,
        "access_log": False,
    }
    assert f"http://{host}:{free_port}" in outcome.err
    assert os.environ["MINI_CLAUDE_WORKERS"] == str(
        workers
    )  # what workers, which are processes of their own, will read


def test_a_server_that_does_not_come_up_is_a_failure(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaitingServer, "run", lambda _server: None)
    monkeypatch.setattr(sys, "argv", ["mini-claude", "serve", "--port", str(free_port)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.STARTUP_FAILURE


def test_a_port_in_use_is_a_sentence_with_another_one(run: RunCommand) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        sentence = run("serve", "--port", str(port)).sentence
    assert f"Port {port} is in use" in sentence
    assert f"--port {port + 1}" in sentence


def test_an_address_that_is_not_this_machines_is_a_sentence(run: RunCommand, free_port: int) -> None:
    outcome = run("serve", "--host", "203.0.113.7", "--port", str(free_port), "--allow-unauthenticated-network")
    assert f"203.0.113.7:{free_port} cannot be used" in outcome.sentence


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_several_workers_need_a_database_that_they_share(run: RunCommand, free_port: int, url: str) -> None:
    words = ("serve", "--port", str(free_port), "--workers")
    assert "use one worker" in run(*words, "2", database_url=url).sentence
    assert run(*words, "1", database_url=url).started is not None


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_data_directory_that_cannot_be_used_is_a_sentence_with_the_setting(
    run: RunCommand, free_port: int, tmp_path: Path, place: str
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    data_dir = file if place == "a file" else file / "data"
    sentence = run("serve", "--port", str(free_port), data_dir=data_dir).sentence
    assert str(data_dir) in sentence
    assert "MINI_CLAUDE_DATA_DIR" in sentence


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("port", "many", "Port to listen on"),
        ("workers", "0", "API worker processes"),
        ("device", "tpu", "cuda:N"),
        ("log_level", "loud", "Least level"),
    ],
)
def test_a_wrong_setting_is_named_with_its_meaning(run: RunCommand, name: str, value: str, meaning: str) -> None:
    for words in (("config",), ("serve",), ("keys", "list"), ("models", "list")):
        sentence = run(*words, **{name: value}).sentence
        assert f"{name} (MINI_CLAUDE_{name.upper()} or mini-claude.toml)" in sentence
        assert meaning in sentence


def test_a_misspelt_setting_in_the_file_is_named(run: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "mini-claude.toml").write_text("prot = 9000\n")
    sentence = run("config").sentence
    assert "prot" in sentence
    assert "there is no such setting" in sentence


def test_a_file_that_is_not_toml_is_a_sentence_with_the_place(run: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "mini-claude.toml").write_text('port = 9000\nhost = "unfinished\n')
    sentence = run("config").sentence
    assert "mini-claude.toml" in sentence
    assert "line 2" in sentence


def test_a_settings_file_that_does_not_exist_is_named(run: RunCommand, tmp_path: Path) -> None:
    sentence = run("config", config=tmp_path / "typo.toml").sentence
    assert str(tmp_path / "typo.toml") in sentence
    assert "MINI_CLAUDE_CONFIG" in sentence


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_shown_as_one_can_open_it(run: RunCommand, free_port: int) -> None:
    outcome = run("serve", "--host", "::1", "--port", str(free_port))
    assert outcome.started is not None
    assert f"http://[::1]:{free_port} " in outcome.err


def test_an_option_out_of_range_is_named(run: RunCommand) -> None:
    assert "port (MINI_CLAUDE_PORT" in run("serve", "--port", "70000").sentence


def test_errors_of_ours_are_shown_literally(run: RunCommand) -> None:
    assert "'[bold]x[/bold] :key:'" in run("keys", "revoke", "[bold]x[/bold] :key:").sentence


def test_settings_are_shown_with_secrets_masked(run: RunCommand) -> None:
    outcome = run("config", api_key="mc-hidden", port=9123)
    assert outcome.code == 0
    assert "port = 9123" in outcome.out
    assert "hidden" not in outcome.out + outcome.err


def test_the_installed_command_exits_with_one_and_a_sentence() -> None:
    environment = os.environ | {"MINI_CLAUDE_PORT": "many"}
    command = [sys.executable, "-m", "mini_claude.cli", "config"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: A setting is wrong. port ")
    assert ended.stderr.count("\n") == 1
