"""Clients that remember exactly what they were told of a reply, and clients that never read it."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.http11 import Response
from websockets.sync.client import connect
from websockets.uri import parse_uri

NATIVE = "/api/v1/chat/completions"
OPENAI = "/v1/chat/completions"
SMALL_BUFFER = 1  # byte: the kernel takes its smallest instead
SMALL_SEGMENT = 200  # bytes: the server's kernel sizes its send buffer by this (2.5 MB for loopback's own segments)


@dataclass(frozen=True)
class Told:
    """What one client was told. `ending` is the finish_reason, the code of the error, "closed <code>" or "refused"."""

    asked: str
    text: str
    ending: str
    session_id: str | None = None
    reply_id: str | None = None


def nothing() -> None:
    """What most clients do when their reply begins."""


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def new_connection(url: str) -> httpx.Client:
    """A client of its own; without the certificates, which take 30 ms to read and are for https."""
    return httpx.Client(base_url=url, timeout=60, verify=False)


def ask(url: str, content: str, **fields: object) -> httpx.Response:
    """One whole answer."""
    with new_connection(url) as http:
        return http.post(NATIVE, json={"messages": user(content), "max_tokens": len(content) + 10, **fields})


def native_stream(url: str, content: str, started: Callable[[], object] = nothing, **fields: object) -> Told:
    """A stream of the native API; `started` is called when it has begun. A stream without an end is an error."""
    text, facts, ending = "", {}, ""
    body = {"messages": user(content), "stream": True, "max_tokens": len(content) + 10, **fields}
    for name, data in _events(url, NATIVE, body, started):
        match name:
            case "start":
                facts = data
            case "delta":
                text += data["text"]
            case "end":
                ending = data["finish_reason"]
            case _:
                ending = data["error"]["code"]
    assert ending, f"cut after {len(text)} characters"
    return Told(content, text, ending, facts.get("session_id"), facts.get("reply_id"))


def openai_stream(url: str, content: str, started: Callable[[], object] = nothing, **fields: object) -> Told:
    """A stream of OpenAI's API, in the same way."""
    text, ending = "", ""
    for _, data in _events(url, OPENAI, {"messages": user(content), "stream": True, **fields}, started):
        if "error" in data:
            ending = data["error"]["code"]
        for choice in data.get("choices", ()):
            text += choice["delta"].get("content") or ""
            ending = choice["finish_reason"] or ending
    assert ending, f"cut after {len(text)} characters"
    return Told(content, text, ending)


def _events(
    url: str, path: str, body: dict[str, object], started: Callable[[], object]
) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of a stream; a refusal counts as one event. Raises where the connection just breaks off.

    By http.client and parsed at the end, because the server shares the processor with its clients.
    """
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return [("refused", json.loads(response.read()))]
        first = response.readline()
        started()
        lines = (first + response.read()).decode().splitlines()
    names = [line[7:] if line.startswith("event: ") else "" for line in ["", *lines]]
    return [
        (name, json.loads(line[6:])) for name, line in zip(names, lines, strict=False) if line.startswith("data: {")
    ]


def socket_frames(url: str, *frames: dict[str, object]) -> Iterator[dict[str, Any]]:
    """Send frames over a WebSocket; what comes back, until the server closes it or the caller has enough."""
    with connect(f"ws{url.removeprefix('http')}/ws/chat") as connection:
        for each in frames:
            connection.send(json.dumps(each))
        try:
            while True:
                yield json.loads(connection.recv(timeout=60))
        except ConnectionClosed as closed:
            yield {"type": "closed", "code": closed.rcvd.code if closed.rcvd else None}


def _follow(frames: Iterator[dict[str, Any]], content: str, started: Callable[[], object]) -> Told:
    text, facts, ending = "", {}, ""
    for each in frames:
        match each["type"]:
            case "start":
                facts = each
                started()
            case "delta":
                text += each["text"]
            case "end":
                ending = each["finish_reason"]
                break
            case "error":
                ending = each["code"]
                break
            case "closed":
                ending = f"closed {each['code']}"
    return Told(content, text, ending, facts.get("session_id"), facts.get("reply_id"))


def web_socket(url: str, content: str, started: Callable[[], object] = nothing, **fields: object) -> Told:
    """A new session's reply over a WebSocket."""
    frame = {"type": "chat", "message": content, "max_tokens": len(content) + 10, **fields}
    try:
        return _follow(socket_frames(url, frame), content, started)
    except InvalidHandshake:
        return Told(content, "", "refused")


def resume(url: str, reply_id: str) -> Told:
    """A reply from its beginning, over a new WebSocket."""
    return _follow(socket_frames(url, {"type": "resume", "reply_id": reply_id}), "", nothing)


def turns(url: str, session_id: str) -> list[dict[str, Any]]:
    """All turns of a session, in the order in which they began."""
    with new_connection(url) as http:
        answer = http.get(f"/api/v1/chat/sessions/{session_id}")
    assert answer.status_code == 200, answer.text
    stored: list[dict[str, Any]] = answer.json()["turns"]
    return stored


@contextmanager
def deaf_socket(url: str) -> Iterator[socket.socket]:
    """A connection with the smallest buffers that a client can ask for, so that they are full soon."""
    address = urlsplit(url)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT)
        line.settimeout(60)
        line.connect((address.hostname, address.port))
        yield line


@contextmanager
def deaf_stream(url: str, path: str, body: dict[str, object]) -> Iterator[socket.socket]:
    """Asks for a stream, which has begun when the block does, and never reads it.

    A seat that an earlier client has just left may be free a moment later only: then it asks again.
    """
    content = json.dumps({**body, "stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    status, deadline = b"", time.monotonic() + 10
    while status != b"HTTP/1.1 200":
        assert time.monotonic() < deadline, status
        with ExitStack() as stack:
            line = stack.enter_context(deaf_socket(url))
            line.sendall(request)
            status = line.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL)
            if status == b"HTTP/1.1 200":
                yield line


@contextmanager
def deaf_web_socket(url: str, *frames: dict[str, object]) -> Iterator[socket.socket]:
    """Opens a WebSocket, sends frames, and never reads what comes back."""
    protocol = ClientProtocol(parse_uri(f"ws{url.removeprefix('http')}/ws/chat"))
    with deaf_socket(url) as line:
        protocol.send_request(protocol.connect())
        line.sendall(b"".join(protocol.data_to_send()))
        while not any(isinstance(event, Response) for event in protocol.events_received()):
            protocol.receive_data(line.recv(256))
        for each in frames:
            protocol.send_text(json.dumps(each).encode())
        line.sendall(b"".join(protocol.data_to_send()))
        yield line


def read_to_end(line: socket.socket) -> bytes:
    """Everything that was kept for this client after all."""
    parts = []
    while part := line.recv(65536):
        parts.append(part)
    return b"".join(parts)
