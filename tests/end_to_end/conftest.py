"""Whole servers, as a user starts them, each with a data directory and a port of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

START_SECONDS = 90.0
END_SECONDS = 30.0
LINGER_SECONDS = "0.3"  # of supervisors whose end is waited for


@dataclass(frozen=True)
class Server:
    """A running server. `process` is what the user started; `http` talks to it."""

    url: str
    data_dir: Path
    process: "subprocess.Popen[bytes]"
    http: httpx.Client

    def processes(self) -> set[psutil.Process]:
        """Every process of this server: they all carry its data directory in their environment."""
        return processes_of(self.data_dir)

    def pids(self, role: str) -> list[int]:
        """Process ids by the role that the metrics give them (worker, supervisor, engine:<model>)."""
        prefix = 'mini_claude_process_resident_memory_bytes{pid="'
        lines = self.http.get("/api/v1/metrics").text.splitlines()
        return [int(line.split('"')[1]) for line in lines if line.startswith(prefix) and f'role="{role}"' in line]

    def metric(self, name: str) -> float:
        """One sample by its full name with labels."""
        for line in self.http.get("/api/v1/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name}")


def processes_of(data_dir: Path) -> set[psutil.Process]:
    found = set()
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("MINI_CLAUDE_DATA_DIR") == str(data_dir)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s: {what}"
        time.sleep(0.05)


@contextmanager
def serving(data_dir: Path, *command: str, **settings: str) -> Iterator[Server]:
    """Start `mini-claude serve` (or `command` with {port} filled in), wait until it answers, end it with SIGTERM.

    At the end no process of it may be left.
    """
    port = free_port()
    environment = os.environ | {"MINI_CLAUDE_DATA_DIR": str(data_dir), "MINI_CLAUDE_LOG_FORMAT": "json"}
    environment["MINI_CLAUDE_LINGER_SECONDS"] = LINGER_SECONDS
    environment["MINI_CLAUDE_PAGE"] = "false"  # its process takes seconds to start, which tests of the page alone need
    environment |= {f"MINI_CLAUDE_{name.upper()}": value for name, value in settings.items()}
    words = [word.format(port=port) for word in command] or ["mini_claude.cli", "serve", "--port", str(port)]
    data_dir.mkdir(parents=True, exist_ok=True)
    log = (data_dir / "test-server.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", *words], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    unshared = httpx.Limits(max_keepalive_connections=0)  # a test that counts connections knows which are open
    http = httpx.Client(base_url=url, timeout=httpx.Timeout(60.0), limits=unshared)
    try:
        until(lambda: is_up(http) or process.poll() is not None, START_SECONDS, "the server does not answer")
        assert process.poll() is None, (data_dir / "test-server.log").read_text()
        yield Server(url, data_dir, process, http)
    finally:
        http.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(END_SECONDS)
        log.close()
        try:
            until(lambda: not processes_of(data_dir), END_SECONDS, f"left behind: {processes_of(data_dir)}")
        finally:
            for left in processes_of(data_dir):
                left.kill()


def is_up(http: httpx.Client) -> bool:
    try:
        return http.get("/api/v1/health/live").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def real_data_dir(data_dir: Path, smollm2_folder: Path) -> Path:
    """A data directory of the test's own in which the embedded model is prepared already."""
    return with_model(data_dir, smollm2_folder)


def with_model(data_dir: Path, smollm2_folder: Path) -> Path:
    shutil.copytree(smollm2_folder, data_dir / "models" / "smollm2-135m", copy_function=os.link)
    return data_dir


@contextmanager
def serving_model(data_dir: Path, smollm2_folder: Path, **settings: str) -> Iterator[Server]:
    """A server whose embedded model is ready."""
    with serving(with_model(data_dir, smollm2_folder), **settings) as server:
        until(lambda: server.http.get("/api/v1/health").status_code == 200, START_SECONDS, "the model is not ready")
        yield server


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory, smollm2_folder: Path) -> Iterator[Server]:
    """One server with the embedded model for all tests that do not break it."""
    with serving_model(tmp_path_factory.mktemp("real"), smollm2_folder) as server:
        yield server
