"""Streams over a real socket: pings, clients that hang up, and what reaches the engine then."""

import asyncio
from typing import Any

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from mini_claude.runtime.messages import ReplyEvent, RequestServed
from mini_claude.types import GenerationDelta
from mini_claude.web.streaming import frame, merge

from .conftest import BASE, OpenSite, Site, eventually, served
from .echo_runtime import EchoRuntime

OPENAI = "/v1/chat/completions"
NATIVE = "/api/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


async def paused_site(open_site: OpenSite, **settings: Any) -> Site:
    """A site whose replies stop after three events until the valve is opened."""
    runtime = EchoRuntime()
    runtime.pause_after = 3
    return await open_site(runtime, **settings)


def idle(site: Site) -> bool:
    stats = site.runtime.stats()
    return not site.runtime.tasks and stats.running == stats.waiting == stats.kv_tokens_used == 0


async def test_silence_is_filled_with_comments_that_the_sdk_ignores(open_site: OpenSite) -> None:
    site = await paused_site(open_site, ping_seconds=0.05)
    lines: list[str] = []
    async with (
        served(site) as address,
        httpx2.AsyncClient() as client,
        client.stream("POST", f"http://{address}{OPENAI}", json={**HELLO, "stream": True}) as answer,
    ):
        async for line in answer.aiter_lines():
            lines.append(line)
            if lines.count(": ping") == 3:
                site.runtime.valve.set()
    assert lines.count(": ping") >= 3
    assert lines[-2:] == ["data: [DONE]", ""]


async def test_the_sdk_reads_past_pings(open_site: OpenSite) -> None:
    from openai import AsyncOpenAI

    site = await paused_site(open_site, ping_seconds=0.05)
    text = ""
    async with served(site) as address, AsyncOpenAI(base_url=f"http://{address}/v1", api_key="x") as sdk:
        stream = await sdk.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        asyncio.get_running_loop().call_later(0.2, site.runtime.valve.set)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "hello"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (OPENAI, {**HELLO, "stream": True}),
        (OPENAI, {**HELLO, "stream": True, "n": 3}),
        ("/v1/completions", {"prompt": "hello", "stream": True}),
        (NATIVE, {**HELLO, "stream": True}),
        (NATIVE, {**HELLO, "stream": True, "session_id": "new"}),
    ],
)
async def test_hanging_up_in_mid_stream_closes_the_reply(open_site: OpenSite, path: str, body: dict[str, Any]) -> None:
    site = await paused_site(open_site)
    async with served(site) as address, httpx2.AsyncClient() as client:
        async with client.stream("POST", f"http://{address}{path}", json=body) as answer:
            async for _ in answer.aiter_bytes():
                break
        await eventually(lambda: idle(site))
    num_replies = body.get("n", 1)
    assert len(site.runtime.requests) == num_replies
    if "session_id" not in body:
        assert sorted(site.runtime.closed) == sorted(request.request_id for request in site.runtime.requests)


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
async def test_hanging_up_before_a_whole_answer_closes_the_reply(open_site: OpenSite, path: str) -> None:
    site = await paused_site(open_site)
    async with served(site) as address:
        async with httpx2.AsyncClient() as client:
            asking = asyncio.create_task(client.post(f"http://{address}{path}", json=HELLO))
            await eventually(lambda: len(site.runtime.requests) == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: idle(site))
        await eventually(lambda: bool(site.runtime.facts))
    served_facts = [fact for fact in site.runtime.facts if isinstance(fact, RequestServed)]
    assert [(fact.route, fact.status) for fact in served_facts] == [(path, 499)]


async def test_many_clients_that_leave_give_everything_back(open_site: OpenSite) -> None:
    site = await paused_site(open_site)

    async def ask_and_leave(address: str) -> None:
        body = {"messages": [{"role": "user", "content": "x" * 1000}], "stream": True}
        async with (
            httpx2.AsyncClient() as client,
            client.stream("POST", f"http://{address}{OPENAI}", json=body) as answer,
        ):
            await anext(answer.aiter_bytes())

    async with served(site) as address:
        await asyncio.gather(*(ask_and_leave(address) for _ in range(30)))
        await eventually(lambda: idle(site))
        site.runtime.pause_after = None
        async with httpx2.AsyncClient() as client:
            answer = await client.post(f"http://{address}{OPENAI}", json=HELLO)
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


async def test_a_stream_says_how_it_wants_to_be_proxied(client: httpx2.AsyncClient) -> None:
    answer = await client.post(OPENAI, json={**HELLO, "stream": True})
    assert answer.headers["cache-control"] == "no-store, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
async def test_at_the_end_of_the_server_a_stream_gets_an_error_and_a_whole_answer_503(
    open_site: OpenSite, path: str
) -> None:
    site = await paused_site(open_site)

    async def read_stream(address: str) -> str:
        async with httpx2.AsyncClient() as client:
            return (await client.post(f"http://{address}{path}", json={**HELLO, "stream": True})).text

    async def read_whole(address: str) -> httpx2.Response:
        async with httpx2.AsyncClient() as client:
            return await client.post(f"http://{address}{path}", json=HELLO)

    async with served(site, shutdown_seconds=0) as address:
        streamed = asyncio.create_task(read_stream(address))
        whole = asyncio.create_task(read_whole(address))
        await eventually(lambda: len(site.runtime.requests) == 2)
    assert '"code":"shutting_down"' in (await streamed).split("\n\n")[-2]
    assert ((await whole).status_code, (await whole).json()["error"]["code"]) == (503, "shutting_down")
    await eventually(lambda: idle(site))


@pytest.mark.parametrize(
    ("path", "options", "frames"),
    [
        (OPENAI, {"stream_options": {"include_usage": True}}, [b'"finish_reason":"stop"', b'"choices":[]', b"[DONE]"]),
        (OPENAI, {"n": 2}, [b'"finish_reason":"stop"', b"[DONE]"]),
        ("/v1/completions", {}, [b'"finish_reason":"stop"', b"[DONE]"]),
        (NATIVE, {}, [b"event: end\n"]),
    ],
)
async def test_what_is_known_at_the_end_leaves_in_one_piece(
    site: Site, path: str, options: dict[str, Any], frames: list[bytes]
) -> None:
    pieces: list[tuple[bytes, bool]] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.body":
                pieces.append((message["body"], message["more_body"]))
            await send(message)

        await site.app(scope, receive, note)

    body = {"prompt": "hello"} if path == "/v1/completions" else HELLO
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(watched), base_url=BASE) as client:
        await client.post(path, json={**body, "stream": True, **options})
    assert [more for _, more in pieces] == [True] * (len(pieces) - 1) + [False]
    ending = pieces[-1][0].removesuffix(b"\n\n").split(b"\n\n")[-len(frames) :]
    assert all(part in each for part, each in zip(frames, ending, strict=True))


class Numbers:
    """A reply of so many events, which may fail at its end."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count = count
        self.error = error

    async def __aiter__(self) -> Any:
        for number in range(1, self.count + 1):
            yield ReplyEvent("r", number, GenerationDelta("r", str(number)))
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        pass


async def test_merging_keeps_each_replys_order_and_interleaves_them() -> None:
    seen = [(index, event.number) async for index, event in merge([Numbers(3), Numbers(200), Numbers(0)])]
    assert [number for index, number in seen if index == 0] == [1, 2, 3]
    assert [number for index, number in seen if index == 1] == list(range(1, 201))
    assert seen.index((0, 3)) < 10


async def test_merging_ends_with_the_first_error() -> None:
    with pytest.raises(ValueError, match="broken"):
        async for _ in merge([Numbers(10_000), Numbers(2, ValueError("broken"))]):
            pass


def test_a_frame_is_one_line_whatever_the_text_holds() -> None:
    text = "a\nb\r\nc\u2028d\u0085e"
    assert frame({"text": text}, "delta") == b'event: delta\ndata: {"text":"a\\nb\\r\\nc\\u2028d\\u0085e"}\n\n'
