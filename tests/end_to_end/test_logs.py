"""What a server writes down and counts of its traffic: ids, codes and numbers; never a prompt, a reply or a key."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from mini_claude.terminal.keys import open_keys
from mini_claude.terminal.users import open_users
from mini_claude.utils.config import Settings

from .conftest import Server, serving

NATIVE = "/api/v1/chat/completions"
OPENAI = "/v1/chat/completions"
SAID = f"said{secrets.token_hex(8)}"  # in everything that clients say and so, as the engine echoes, in all replies
PASSWORD = "correct horse battery staple"
WRONG_PASSWORD = "wrong horse battery staple"
WRONG_KEY = f"mc-{secrets.token_hex(20)}xyz"


def says(content: str = f"hello {SAID}", **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}], **fields}


BODIES: list[tuple[str, dict[str, object], int]] = [
    (NATIVE, says(), 200),
    (NATIVE, says(stream=True, system=SAID), 200),
    (NATIVE, says(session_id="new", stop=[SAID + "!"]), 200),
    (NATIVE, says(f"poison {SAID}"), 500),
    (NATIVE, says(f"poison {SAID}", session_id="new", stream=True), 200),
    (NATIVE, says(f"{SAID} " * 500), 400),
    (NATIVE, says(session_id=SAID), 404),
    (NATIVE, says(model=SAID), 404),
    (NATIVE, {**says(), SAID: 1}, 422),
    (NATIVE, says(temperature=SAID), 422),
    (NATIVE, {"messages": SAID}, 422),
    (OPENAI, says(model="default"), 200),
    (OPENAI, says(model="default", stream=True, logprobs=True), 200),
    (OPENAI, says(f"poison {SAID}", model="default", stream=True), 200),
    (OPENAI, says(model="default", tools=[{"type": SAID}]), 400),
    (OPENAI, {"model": "default", "messages": [{"role": SAID, "content": SAID}]}, 400),
    ("/v1/completions", {"model": "default", "prompt": SAID}, 200),
    ("/v1/completions", {"model": "default", "prompt": [SAID], "suffix": SAID}, 400),
    ("/api/v1/models/load", {"model": "default", "dtype": SAID}, 422),
    (f"/api/v1/{SAID}", says(), 404),
    (f"{NATIVE}?prompt={SAID}", says(), 200),
]


def talk_over_http(server: Server, key: str) -> list[str]:
    """All kinds of requests, good and bad; their ids."""
    ids = []
    for path, body, status in BODIES:
        answer = server.http.post(path, json=body)
        assert answer.status_code == status, (path, body, answer.text)
        ids.append(answer.headers["x-request-id"])
    broken = server.http.post(OPENAI, content=f'{{"messages": "{SAID}', headers={"content-type": "application/json"})
    large = server.http.post(NATIVE, json=says(SAID * 70_000))
    assert (broken.status_code, large.status_code) == (400, 413)
    for headers in ({"authorization": f"Bearer {WRONG_KEY}"}, {"authorization": "", "x-api-key": WRONG_KEY}):
        refused = server.http.post(NATIVE, json=says(), headers=headers)
        assert refused.status_code == 401
    in_url = server.http.get(f"/v1/models?api_key={key}")
    origin = server.http.post(OPENAI, json=says(), headers={"origin": f"http://{SAID}"})
    assert (in_url.status_code, origin.status_code) == (200, 403)
    return [*ids, *(answer.headers["x-request-id"] for answer in (broken, large, refused, in_url, origin))]


def read_until(connection: ClientConnection, kind: str) -> dict[str, Any]:
    """The next frame of this kind."""
    while True:
        frame: dict[str, Any] = json.loads(connection.recv(timeout=30))
        if frame["type"] == kind:
            return frame


def talk_over_web_sockets(server: Server, key: str) -> list[str]:
    """A reply, its stop and its resumption, frames that are none, and keys in every place that there is."""
    url = f"ws{server.url.removeprefix('http')}/ws/chat?prompt={SAID}&api_key={key}"
    ids = []
    with connect(url, additional_headers={"authorization": f"Bearer {key}"}) as connection:
        connection.send(json.dumps({"type": "chat", "message": f"hello {SAID}", "max_tokens": 100}))
        reply_id = read_until(connection, "start")["reply_id"]
        read_until(connection, "end")
        connection.send(json.dumps({"type": "resume", "reply_id": reply_id}))
        read_until(connection, "end")
        connection.send(json.dumps({"type": "chat", "message": f"poison {SAID}"}))
        assert read_until(connection, "error")["code"] == "internal_error"
        for frame in (SAID, f'{{"type": "{SAID}"}}', json.dumps({"type": "resume", "reply_id": SAID})):
            connection.send(frame)
            ids.append(read_until(connection, "error")["request_id"])
    with connect(url, subprotocols=["mini-claude", key]) as connection:  # type: ignore[list-item]
        read_until(connection, "ready")
    for sent in (key, WRONG_KEY):
        with connect(url) as connection:
            connection.send(json.dumps({"type": "auth", "key": sent}))
            read_until(connection, "ready" if sent == key else "error")
    for path in ("/ws/chat", f"/ws/{SAID}"):
        with (
            pytest.raises(InvalidStatus),
            connect(f"ws{server.url.removeprefix('http')}{path}", additional_headers={"x-api-key": WRONG_KEY}),
        ):
            pass
    return ids


def sign_in(server: Server) -> str:
    """A token, after a wrong password and a body that is none."""
    login = "/api/v1/auth/login"
    assert server.http.post(login, json={"name": "ada", "password": WRONG_PASSWORD}).status_code == 401
    assert server.http.post(login, json={"name": "ada", "password": [PASSWORD]}).status_code == 422
    token: str = server.http.post(login, json={"name": "ada", "password": PASSWORD}).json()["access_token"]
    assert server.http.get("/api/v1/me", headers={"authorization": f"Bearer {token}"}).json()["user_name"] == "ada"
    assert server.http.get("/api/v1/me", headers={"authorization": f"Bearer {token[:-2]}"}).status_code == 401
    return token


def log_lines(data_dir: Path) -> Iterator[dict[str, Any]]:
    """Every line of every rotated file of every process."""
    for path in (data_dir / "logs").glob("*.log*"):
        yield from map(json.loads, path.read_text().splitlines())


@pytest.mark.parametrize("log_level", ["info", "debug"])
def test_nothing_that_clients_say_and_no_key_is_in_any_log_or_metric(data_dir: Path, log_level: str) -> None:
    with open_keys(Settings(data_dir=data_dir)) as keys, open_users(Settings(data_dir=data_dir)) as users:
        _, key = asyncio.run(keys.create("test"))
        asyncio.run(users.create("ada", PASSWORD))
    with serving(data_dir, engine="echo", log_level=log_level) as server:
        server.http.headers["authorization"] = f"Bearer {key}"
        ids = {*talk_over_http(server, key), *talk_over_web_sockets(server, key)}
        assert SAID in server.http.post(NATIVE, json=says()).text
        token = sign_in(server)
        scraped = server.http.get("/api/v1/metrics").text
        assert "mini_claude_replies_total" in scraped
        assert not any(secret in scraped for secret in (SAID, key, WRONG_KEY, PASSWORD, token))
    logs = [path for path in (data_dir / "logs").iterdir() if path.is_file()]
    assert {"api-0.log", "supervisor-0.log", "engine-smollm2-135m-0.log"} <= {path.name for path in logs}
    for path in (*logs, data_dir / "test-server.log"):
        text = path.read_text()
        for secret in (SAID, key, WRONG_KEY, PASSWORD, WRONG_PASSWORD, token):
            assert secret not in text, next(line for line in text.splitlines() if secret in line)
    served = [line for line in log_lines(data_dir) if line["event"] == "request"]
    assert ids <= {line["request_id"] for line in served}
    of_requests = [line for line in log_lines(data_dir) if line["logger"].startswith("mini_claude.web")]
    assert len(of_requests) >= len(ids)
    assert [line for line in of_requests if "request_id" not in line] == []
