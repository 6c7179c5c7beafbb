"""The server as terminal commands see it: over HTTP, started for the occasion where none runs."""

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

from mini_claude.errors import MiniClaudeError, Unavailable
from mini_claude.utils.config import Settings

START_SECONDS = 60.0


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def bind_error(settings: Settings) -> OSError | None:
    """Why a server could not listen where the settings say; None where it could."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return error
    return None


class ServerClient:
    """JSON calls to one server. Raises `MiniClaudeError` with the server's own sentence for every error answer."""

    def __init__(self, settings: Settings) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
        key = settings.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self.http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(30.0, read=None),
            limits=httpx.Limits(max_keepalive_connections=0),  # a command makes few calls, and nobody closes it
            trust_env=False,  # no proxy stands between this machine and itself
        )

    def is_up(self) -> bool:
        """Whether a Mini-Claude answers there."""
        try:
            return self.http.get("/api/v1/health/live", timeout=5.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def call(self, method: str, path: str, json: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request; the answer's JSON."""
        try:
            response = self.http.request(method, path, json=json)
        except httpx.TransportError as error:
            raise self.unreachable() from error
        self.raise_for(response)
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    def raise_for(self, response: httpx.Response) -> None:
        """Turn an error answer (whose body has been read) into its exception."""
        if response.is_success:
            return
        try:
            error = response.json()["error"]
            raise MiniClaudeError(error["message"], code=error["code"], param=error.get("param"))
        except (ValueError, KeyError, TypeError):
            raise MiniClaudeError(f"The server answered {response.status_code} without a reason.") from None

    def unreachable(self) -> Unavailable:
        """The error for a server that does not answer."""
        return Unavailable(f"No server answers at {self.url}; start one with `mini-claude serve`.")


@contextlib.contextmanager
def running_server(settings: Settings, *, preload: bool = True) -> Iterator[ServerClient]:
    """A client of the server at settings.host:port; where none runs, one is started and ended with the block.

    `preload` False is for commands that need no model.
    """
    client = ServerClient(settings)
    if client.is_up():
        yield client
        return
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.logs_dir.mkdir(exist_ok=True)
    log = settings.logs_dir / "serve.err"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "mini_claude.cli", "serve", "--host", settings.host, "--port", str(settings.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ if preload else os.environ | {"MINI_CLAUDE_PRELOAD": "false"},
            start_new_session=True,  # Ctrl-C stops the reply, not the server
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not client.is_up():
            if process.poll() is not None:
                reason = log.read_text(errors="replace").strip().splitlines()
                raise Unavailable(f"The server did not start: {reason[-1] if reason else 'no reason given'}")
            if time.monotonic() > deadline:
                raise Unavailable(f"The server did not start within {START_SECONDS:.0f} s; see {settings.logs_dir}.")
            time.sleep(0.1)
        yield client
    finally:
        process.terminate()
        process.wait()
