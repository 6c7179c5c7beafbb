"""Where terminal commands look for the server, and how they start one where none runs."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from mini_claude.errors import MiniClaudeError, Unavailable
from mini_claude.terminal.chat import TerminalChat
from mini_claude.terminal.server import ServerClient, running_server
from mini_claude.utils.config import Settings

from .conftest import RunningSite, SetEnvironment
from .user import Screen


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answering(answer: httpx.Response) -> Iterator[ServerClient]:
    client = ServerClient(Settings())
    client.http.close()
    client.http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(lambda _: answer))
    yield client
    client.http.close()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8123"),
        ("localhost", "http://localhost:8123"),
        ("0.0.0.0", "http://127.0.0.1:8123"),
        ("::", "http://[::1]:8123"),
        ("::1", "http://[::1]:8123"),
        ("fe80::1", "http://[fe80::1]:8123"),
    ],
)
def test_the_server_is_where_it_listens(host: str, url: str) -> None:
    client = ServerClient(Settings(host=host, port=8123))
    assert client.url == url
    assert str(client.http.base_url).rstrip("/") == url


def test_a_proxy_of_the_environment_is_not_asked_for_the_own_server(
    site: RunningSite, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    client = ServerClient(site.settings)
    assert client.is_up()
    client.http.close()


@pytest.mark.parametrize("content", [b"", b"Bad gateway", b"[]", b'{"error": "odd"}', b'{"detail": 1}'])
def test_an_error_without_our_shape_is_still_a_sentence(content: bytes) -> None:
    for client in answering(httpx.Response(502, content=content)):
        with pytest.raises(MiniClaudeError, match="answered 502 without a reason"):
            client.call("GET", "/")


def test_an_error_of_the_server_keeps_its_code_and_field() -> None:
    body = {"error": {"code": "model_not_found", "message": "No such model.", "param": "model", "request_id": "r"}}
    for client in answering(httpx.Response(404, json=body)):
        with pytest.raises(MiniClaudeError) as caught:
            client.call("GET", "/")
        assert (caught.value.code, caught.value.message, caught.value.param) == (
            "model_not_found",
            "No such model.",
            "model",
        )


def test_an_answer_without_a_body_is_an_empty_one() -> None:
    for client in answering(httpx.Response(204)):
        assert client.call("DELETE", "/") == {}


def test_a_server_that_runs_is_used_and_left_running(site: RunningSite) -> None:
    with running_server(site.settings) as client:
        assert client.call("GET", "/api/v1/health/live") == {"status": "alive"}
        client.http.close()
    assert ServerClient(site.settings).is_up()


def test_where_none_runs_one_is_started_and_ends_with_the_block(
    data_dir: Path, free_port: int, set_environment: SetEnvironment
) -> None:
    set_environment(port=free_port, host="127.0.0.1")
    screen = Screen()
    before = set(psutil.Process().children())
    with running_server(Settings()) as client:
        TerminalChat(client, Console(file=screen)).handle("hello")
        (server,) = set(psutil.Process().children()) - before
        client.http.close()
    assert screen.getvalue() == "hello\n"
    assert not server.is_running()
    assert (data_dir / "mini-claude.db").is_file()


def test_a_server_that_cannot_start_says_why(data_dir: Path, free_port: int, set_environment: SetEnvironment) -> None:
    set_environment(port=free_port, workers=2, database_url="sqlite://")
    with pytest.raises(Unavailable, match=r"did not start: error: .*use one worker"), running_server(Settings()):
        raise AssertionError("it started")
