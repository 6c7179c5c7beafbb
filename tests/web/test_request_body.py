"""The body's bounds: size, depth, time."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx2
import pytest
from hypothesis import given, strategies
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from mini_claude.errors import PayloadTooLarge
from mini_claude.web import request_body
from mini_claude.web.request_body import MAX_DEPTH, read_body, too_deep

from .conftest import OpenSite, Site, served

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def nested(depth: int) -> bytes:
    return b'{"a":[' * (depth // 2) + b"[" * (depth % 2) + b"]" * (depth % 2) + b"]}" * (depth // 2)


def test_depth_is_counted_exactly() -> None:
    assert not too_deep(nested(MAX_DEPTH))
    assert too_deep(nested(MAX_DEPTH + 1))
    assert not too_deep(b"[" + b"[]," * 1000 + b"[]]")
    assert not too_deep(json.dumps("[" * 100).encode())
    assert not too_deep(json.dumps({'"\\"' + "{" * 100: ["\\"]}).encode())


def depth_of(value: object) -> int:
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return 1 + max((depth_of(child) for child in children), default=0)
    return 0


@given(
    strategies.recursive(
        strategies.text('[]{}"\\', max_size=8) | strategies.integers(),
        lambda inner: (
            strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text('{"', max_size=3), inner)
        ),
    ),
    strategies.integers(0, MAX_DEPTH),
)
def test_depth_agrees_with_the_parsed_document(value: object, wraps: int) -> None:
    for _ in range(wraps):
        value = [value, "["]
    assert too_deep(json.dumps(value).encode()) == (depth_of(value) > MAX_DEPTH)


@pytest.mark.parametrize(
    "body", [b"[" * 10**6, b'"' * 10**6, b'"\\"' * 330_000, b"\\" * 10**6, b"[]" * 500_000, b'{"' * 500_000]
)
def test_no_megabyte_takes_long_to_judge(body: bytes) -> None:
    started = time.process_time()
    too_deep(body)
    assert time.process_time() - started < 0.5


async def test_the_size_limit_is_exact(open_site: OpenSite) -> None:
    site = await open_site(max_body_bytes=2048)
    async with site.client() as client:
        for size, status in ((2048, 200), (2049, 413)):
            answer = await client.post(
                "/v1/completions", content=b'{"prompt":"x"' + b" " * (size - 14) + b"}", headers=JSON
            )
            assert answer.status_code == status, answer.text


async def test_a_chunked_body_is_cut_off_at_the_limit(open_site: OpenSite) -> None:
    site = await open_site(max_body_bytes=2048)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 100

    async with site.client() as client:
        answer = await client.post(PATH, content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "payload_too_large"
    assert "2048" in answer.json()["error"]["message"]
    assert sent == 21


@pytest.mark.parametrize("length", ["2049", "9" * 30, "-1", "1e3", "٣"])
async def test_an_announced_length_is_believed_only_when_small(open_site: OpenSite, length: str) -> None:
    site = await open_site(max_body_bytes=2048)
    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode("utf-8"))]
    async with site.client() as client:
        assert (await client.post(PATH, content=b"{}", headers=headers)).status_code == 413


async def test_deep_json_is_a_client_error(client: httpx2.AsyncClient) -> None:
    for body in (nested(33), nested(5000), b'{"messages":' * 50_000):
        answer = await client.post(PATH, content=body, headers=JSON)
        assert answer.status_code == 400
        assert "32 levels" in answer.json()["error"]["message"]


def body_of(*messages: Message) -> Receive:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    return receive


POST: Scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}


async def test_the_body_is_given_once_and_then_the_disconnect() -> None:
    parts = [{"type": "http.request", "body": part, "more_body": part != b"c"} for part in (b"a", b"b", b"c")]
    receive = await read_body(POST, body_of(*parts, {"type": "http.disconnect"}), 3)
    assert await receive() == {"type": "http.request", "body": b"abc", "more_body": False}
    assert await receive() == {"type": "http.disconnect"}


async def test_a_client_that_leaves_while_sending_is_no_error_of_ours() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(POST, body_of({"type": "http.request", "more_body": True}, {"type": "http.disconnect"}), 9)


async def test_a_body_that_never_ends_arriving_is_given_up_with_its_connection(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.05)
    async with served(site) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {PATH} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 100\r\n\r\n{{".encode())
        answer = await asyncio.wait_for(reader.read(), 5)  # to the end: the server closes
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"request_timeout"' in answer


@pytest.mark.alone
async def test_two_hundred_clients_that_dawdle_slow_nobody_down(site: Site) -> None:
    begun = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000\r\n\r\n{{".encode()
    seconds: list[float] = []
    async with served(site) as address, httpx2.AsyncClient() as client:
        host, _, port = address.partition(":")
        slow = [await asyncio.open_connection(host, int(port)) for _ in range(200)]
        for _, writer in slow:
            writer.write(begun)
        for _ in range(100):
            for _, writer in slow[::20]:
                writer.write(b" ")
            started = time.perf_counter()
            assert (await client.get(f"http://{address}/api/v1/health/live")).status_code == 200
            seconds.append(time.perf_counter() - started)
        for _, writer in slow:
            writer.close()
    assert sorted(seconds)[98] < 0.25


async def test_a_client_that_sends_far_too_much_still_gets_to_read_why(site: Site) -> None:
    async with served(site) as address, httpx2.AsyncClient() as client:
        answer = await client.post(f"http://{address}{PATH}", content=b" " * 8_000_000, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


async def test_one_byte_too_many_is_refused_while_more_is_coming() -> None:
    with pytest.raises(PayloadTooLarge):
        await read_body(POST, body_of({"type": "http.request", "body": b"1234", "more_body": True}), 3)
