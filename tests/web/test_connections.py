"""What comes, or does not, over sockets: slow heads, endless heads, answers that nobody reads, too many at once."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from mini_claude.web import connections, upload
from mini_claude.web.connections import WebSocketConnection
from mini_claude.web.error_handlers import HTTPStatusError
from mini_claude.web.request_head import MAX_HEAD_BYTES, MAX_HEADERS

from .conftest import LOCAL, OpenSite, Site, eventually, listening, served

LIVE = "/api/v1/health/live"
GET = f"GET {LIVE} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
CHUNKED = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
UPGRADE = (
    "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
    + "A" * 22
    + "==\r\n"
)


@asynccontextmanager
async def line(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def to_end(reader: asyncio.StreamReader, seconds: float = 5.0) -> bytes:
    """What is sent until the server closes the connection; also what came before it was reset."""
    got = b""
    async with asyncio.timeout(seconds):
        try:
            while part := await reader.read(65536):
                got += part
        except ConnectionResetError:
            pass
    return got


async def test_a_head_that_drips_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with served(site) as address, line(address) as (reader, writer):
        dripping = asyncio.create_task(drip(writer, GET.encode()))
        assert (await to_end(reader)).startswith(b"HTTP/1.1 408 Request Timeout")
        dripping.cancel()


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data * 100:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("first", ["", GET + "\r\n"])
async def test_a_connection_on_which_nothing_comes_is_closed_also_when_empty_lines_do(
    site: Site, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with served(site) as address:
        async with line(address) as (reader, writer):
            writer.write(first.encode())
            assert (await to_end(reader)).startswith(b"HTTP/1.1 200" if first else b"")
        async with line(address) as (reader, writer):
            writer.write(first.encode())
            dripping = asyncio.create_task(drip(writer, b"\r\n"))
            assert b"HTTP/1.1 408" in await to_end(reader)
            dripping.cancel()


async def test_the_bounds_of_a_head_are_exact(site: Site) -> None:
    few = {f"h{number}": "" for number in range(MAX_HEADERS)}
    async with site.client() as client:
        own = len((await client.get(LIVE)).request.headers)
        for more, status in ((-own, 200), (-own + 1, 431)):
            names = list(few)[: MAX_HEADERS + more]
            answer = await client.get(LIVE, headers=dict.fromkeys(names, ""))
            assert answer.status_code == status, answer.text
        room = MAX_HEAD_BYTES - len(LIVE) - sum(len(n) + len(v) for n, v in answer.request.headers.raw[:own]) - 1
        for more, status in ((0, 200), (1, 431)):
            answer = await client.get(LIVE, headers={"h": "x" * (room + more)})
            assert answer.status_code == status
    assert answer.json()["error"]["code"] == "head_too_large"


@pytest.mark.parametrize(
    "endless",
    [
        "GET /",
        "GET / HTTP/1.1\r\nh: ",
        "GET / HTTP/1.1\r\n" + "a: b\r\n",
        CHUNKED + "trailer: ",
        CHUNKED[:-3] + "1;x=",
    ],
)
async def test_what_has_no_end_is_cut_before_it_fills_the_memory(site: Site, endless: str) -> None:
    async with served(site) as address, line(address) as (reader, writer):
        writer.write(endless.encode())
        got = asyncio.create_task(to_end(reader))
        num_sent = 0
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x" * 4096 if endless[-1] != "\n" else b"a: b\r\n" * 500)
                await writer.drain()
                num_sent += 4096
                assert num_sent < 50_000_000
                await asyncio.sleep(0)
        assert (await got)[:12] in (b"HTTP/1.1 431", b"")


async def test_a_large_body_in_small_chunks_is_no_endless_head(open_site: OpenSite) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5_000):
            yield b"  "

    site = await open_site()
    async with served(site) as address, httpx2.AsyncClient() as client:
        answer = await client.post(f"http://{address}/v1/chat/completions", content=pieces())
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("header", [f"x: {'y' * 9000}\r\n", "x: y\r\n" * 200])
async def test_a_websocket_whose_head_is_too_large_is_refused(site: Site, header: str) -> None:
    async with served(site) as address, line(address) as (reader, writer):
        writer.write(f"GET /ws/chat HTTP/1.1\r\nhost: 127.0.0.1\r\n{UPGRADE}{header}\r\n".encode())
        assert (await to_end(reader)).startswith(b"HTTP/1.1 431")


async def test_the_longest_silence_makes_room_for_who_comes(open_site: OpenSite) -> None:
    site = await open_site(max_connections=16)
    async with served(site) as address:
        lines = [await asyncio.open_connection(*address.split(":")) for _ in range(40)]
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"http://{address}{LIVE}")).status_code == 200
        ended = [await to_end(reader) for reader, _ in lines[:24]]
        assert ended == [b""] * 24
        for _, writer in lines:
            writer.close()


async def test_more_requests_than_connections_are_told_to_come_back(open_site: OpenSite) -> None:
    site = await open_site(max_connections=16)
    site.runtime.pause_after = 0
    body = {"messages": [{"role": "user", "content": "hello"}]}
    async with site.client() as client:
        busy = [asyncio.create_task(client.post("/api/v1/chat/completions", json=body)) for _ in range(16)]
        await eventually(lambda: len(site.runtime.requests) == 16)
        answer = await client.post("/v1/chat/completions", json=body)
        other = TestClient(site.app, client=LOCAL)
        with pytest.raises(WebSocketDenialResponse) as refused, other.websocket_connect("ws://127.0.0.1:8000/ws/chat"):
            pass
        site.runtime.valve.set()
        assert {each.status_code for each in await asyncio.gather(*busy)} == {200}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "overloaded"
    assert refused.value.status_code == 503


def deaf(address: str) -> socket.socket:
    """A connection with the smallest buffers that a client can ask for."""
    host, _, port = address.partition(":")
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 200)
    own.connect((host, int(port)))
    return own


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """An application with a long answer: whole, in pieces, or as WebSocket messages until it cannot go on."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            for _ in range(10):
                await send({"type": "websocket.send", "text": "x" * 1_000_000})
        return
    num_pieces = 1 if scope["path"] == "/whole" else 10
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(num_pieces):
        await send({"type": "http.response.body", "body": b"x" * 8_000_000, "more_body": number < num_pieces - 1})


@pytest.mark.parametrize("path", ["/whole", "/pieces"])
async def test_an_answer_that_nobody_takes_ends(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.3)
    async with listening(answering) as (address, server):
        with deaf(address) as own:
            own.send(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            await eventually(lambda: len(server.server_state.connections) == 1)
            await eventually(lambda: not server.server_state.connections)
            await eventually(lambda: not server.server_state.tasks)


async def test_an_answer_that_is_taken_slowly_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.5)
    num_bytes = 0
    async with listening(answering) as (address, _):
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port))) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)  # else the kernel takes all of it
            reader, writer = await asyncio.open_connection(sock=own)
            writer.write(b"GET /whole HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            while part := await reader.read(100_000):
                num_bytes += len(part)
                await asyncio.sleep(0.02)  # so that it takes several deadlines, in each of which some of it is taken
            writer.close()
    assert num_bytes > 8_000_000


@asynccontextmanager
async def deaf_web_socket(
    address: str, server: uvicorn.Server
) -> AsyncIterator[tuple[socket.socket, WebSocketConnection]]:
    """A WebSocket whose client asked for messages and reads none, when the server has noticed; both ends."""
    loop = asyncio.get_running_loop()
    open_ones = server.server_state.connections
    with deaf(address) as own:
        own.setblocking(False)
        await loop.sock_sendall(own, f"GET / HTTP/1.1\r\nhost: a\r\n{UPGRADE}\r\n".encode())
        await eventually(lambda: any(isinstance(each, WebSocketConnection) for each in open_ones))
        (connection,) = open_ones
        assert isinstance(connection, WebSocketConnection)
        await loop.sock_sendall(own, Frame(Opcode.TEXT, b"go").serialize(mask=True))
        await eventually(lambda: not connection.writable.is_set())
        yield own, connection


async def test_a_websocket_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.3)
    async with listening(answering) as (address, server), deaf_web_socket(address, server):
        await eventually(lambda: not server.server_state.connections)
        await eventually(lambda: not server.server_state.tasks)


class Spy:
    """A transport that remembers what was written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


async def test_pings_are_not_answered_while_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    pings = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 100
    pong = Frame(Opcode.PONG, b"x" * 125).serialize(mask=False)
    async with listening(answering) as (address, server), deaf_web_socket(address, server) as (own, connection):
        spy = Spy(connection.transport)
        monkeypatch.setattr(connection, "transport", spy)
        last = Frame(Opcode.TEXT, b"again").serialize(mask=True)
        await asyncio.get_running_loop().sock_sendall(own, pings + last)
        await eventually(lambda: connection.queue.qsize() == 1)  # all of it was read
        assert not any(pong in data for data in spy.written)


async def test_a_message_of_too_many_fragments_ends_its_websocket(site: Site) -> None:
    async with served(site) as address, connect(f"ws://{address}/ws/chat") as own:
        await own.send([" "] * (connections.MAX_FRAGMENTS - 1))  # and an empty one at the end
        assert "ready" in str(await own.recv())
        assert "error" in str(await own.recv())  # it is no JSON, but it was read
        with pytest.raises(ConnectionClosed) as closed:
            await own.send([" "] * 10_000)
            while True:
                await own.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_a_file_for_the_page_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "IDLE_SECONDS", 0.05)

    async def stalling() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(60)

    with pytest.raises(HTTPStatusError) as late:
        async for _ in upload.paced(stalling()):
            pass
    assert late.value.status == 408


def test_the_limit_of_open_files_is_raised_to_what_connections_need() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        connections.allow_open_files(500)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500 + connections.OTHER_FILES, before[1])
        connections.allow_open_files(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500 + connections.OTHER_FILES, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
