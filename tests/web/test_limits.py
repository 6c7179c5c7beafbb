"""Limits over HTTP and WebSockets: 429 before anything is stored or generated, headers, and other callers' peace."""

import json
from typing import Any

import httpx2
import pytest
from openai import RateLimitError
from websockets.asyncio.client import connect

from mini_claude.data.records import Limits
from mini_claude.services.identity import LOCAL
from mini_claude.types import Message, SamplingParams

from .conftest import OpenSite, Site, served
from .echo_runtime import EchoRuntime

pytestmark = pytest.mark.both_databases

NATIVE = "/api/v1/chat/completions"
OPENAI = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
XRAY = "/api/v1/xray"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    NATIVE: {"messages": MESSAGES, "session_id": "new", "max_tokens": 4},
    OPENAI: {"messages": MESSAGES, "max_tokens": 4},
    COMPLETIONS: {"prompt": "Hi", "max_tokens": 4},
    XRAY: {"messages": MESSAGES, "max_tokens": 4},
}
HEADERS = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")


def told(answer: httpx2.Response) -> tuple[int, ...]:
    return tuple(int(answer.headers[name]) for name in HEADERS)


async def limited(site: Site, **limits: int) -> httpx2.AsyncClient:
    """A client with a user's key of these limits; there is an admin's key too."""
    if not await site.services.credentials.needed():
        await site.key("admin")
    _, plain = await site.services.keys.create("guest", "user", limits=Limits(**limits))
    return site.client(authorization=f"Bearer {plain}")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_beyond_the_limit_is_429_and_leaves_nothing_behind(site: Site, path: str, stream: bool) -> None:
    body = BODIES[path] | ({"stream": True} if stream and path != XRAY else {})
    async with await limited(site, requests_per_minute=2) as client, await limited(site) as other:
        answers = [await client.post(path, json=body) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        assert [told(answer)[:2] for answer in answers] == [(2, 1), (2, 0)]
        assert all(50 <= told(answer)[2] <= 60 for answer in answers)
        sessions = (await client.get("/api/v1/chat/sessions")).json()
        num_started = len(site.runtime.requests)
        refused = await client.post(path, json=body)
        assert refused.status_code == 429
        assert told(refused) == (2, 0, int(refused.headers["retry-after"]))
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("rate_limit_exceeded", None)
        assert "2 requests a minute" in error["message"]
        assert error.get("type", "rate_limit_error") == "rate_limit_error"
        assert ("type" in error) == path.startswith("/v1/")
        assert (await client.get("/api/v1/chat/sessions")).json() == sessions
        assert len(site.runtime.requests) == num_started
        free = await other.post(path, json=body)
        assert free.status_code == 200
        assert not set(HEADERS) & set(free.headers)


async def test_a_bad_request_and_one_for_what_is_not_there_are_not_counted(site: Site) -> None:
    async with await limited(site, requests_per_minute=1) as client:
        for path, body in BODIES.items():
            assert (await client.post(path, json=body | {"max_tokens": -1})).status_code in (400, 422)
            assert (await client.post(path, json=body | {"model": "nothing"})).status_code == 404
        assert (await client.post(NATIVE, json=BODIES[NATIVE] | {"session_id": "nothing"})).status_code == 404
        assert (await client.post(NATIVE, json=BODIES[NATIVE])).status_code == 200


async def test_the_openai_sdk_sees_its_own_error_and_several_choices_are_one_request(site: Site) -> None:
    await site.key("admin")
    _, plain = await site.services.keys.create("guest", "user", limits=Limits(requests_per_day=2, concurrent_replies=2))
    sdk = site.openai(plain)
    messages: list[Any] = MESSAGES
    made = await sdk.chat.completions.create(model="default", messages=messages, n=2)
    assert len(made.choices) == 2
    with pytest.raises(RateLimitError, match="2 replies at once"):
        await sdk.chat.completions.create(model="default", messages=messages, n=3)
    assert len(site.runtime.requests) == 2  # not one of the three was begun
    assert len((await sdk.completions.create(model="default", prompt=["a", "b"])).choices) == 2
    with pytest.raises(RateLimitError) as caught:
        await sdk.completions.create(model="default", prompt="a")
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) > 86_000


async def test_me_tells_what_is_left(site: Site) -> None:
    async with await limited(site, requests_per_minute=5, tokens_per_day=1000, concurrent_replies=3) as client:
        answer = (await client.post(NATIVE, json=BODIES[NATIVE])).json()
        limits = {limit.pop("name"): limit for limit in (await client.get("/api/v1/me")).json()["limits"]}
    assert limits.keys() == {"requests_per_minute", "tokens_per_day", "concurrent_replies"}
    requests, tokens = limits["requests_per_minute"], limits["tokens_per_day"]
    assert (requests["limit"], requests["remaining"]) == (5, 4)
    assert 0 < requests["reset_seconds"] <= 60 < tokens["reset_seconds"] <= 86_400
    assert tokens["remaining"] == 1000 - answer["tokens_used"]
    assert limits["concurrent_replies"] == {"limit": 3, "remaining": 3, "reset_seconds": 0.0}


async def test_the_settings_limit_keys_without_own_limits_and_the_local_caller(open_site: OpenSite) -> None:
    site = await open_site(limit_requests_per_minute=1)
    async with site.client() as client:
        assert [(await client.post(NATIVE, json=BODIES[NATIVE])).status_code for _ in range(2)] == [200, 429]
    async with await limited(site) as client:
        assert [(await client.post(NATIVE, json=BODIES[NATIVE])).status_code for _ in range(2)] == [200, 429]
    async with await limited(site, requests_per_minute=0) as client:
        assert [(await client.post(NATIVE, json=BODIES[NATIVE])).status_code for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
async def test_a_stream_that_is_hung_up_gives_its_place_back(open_site: OpenSite, path: str) -> None:
    runtime = EchoRuntime()
    runtime.pause_after = 1
    site = await open_site(runtime)
    await site.key("admin")
    _, plain = await site.services.keys.create("guest", "user", limits=Limits(concurrent_replies=1))
    async with served(site) as address:
        headers = {"authorization": f"Bearer {plain}"}
        async with httpx2.AsyncClient(base_url=f"http://{address}", headers=headers) as client:
            body = BODIES[path] | {"stream": True}
            async with client.stream("POST", path, json=body) as answer:
                assert answer.status_code == 200
                refused = await client.post(path, json=body)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            me = {"remaining": 0}
            while not me["remaining"]:  # the server notices in its own time
                (me,) = (await client.get("/api/v1/me")).json()["limits"]


async def test_a_websocket_gets_an_error_frame_and_stays_open(site: Site) -> None:
    await site.key("admin")
    _, plain = await site.services.keys.create("guest", "user", limits=Limits(requests_per_minute=1))
    async with (
        served(site) as address,
        connect(f"ws://{address}/ws/chat", additional_headers={"x-api-key": plain}) as socket,
    ):

        async def frame(*kinds: str) -> dict[str, Any]:
            while True:
                got: dict[str, Any] = json.loads(await socket.recv())
                if got["type"] in kinds:
                    return got

        for _ in range(2):
            await socket.send(json.dumps({"type": "chat", "message": "Hi"}))
            last = await frame("end", "error")
        assert (last["type"], last["code"], last["reply_id"]) == ("error", "rate_limit_exceeded", None)
        await socket.send(json.dumps({"type": "auth", "key": plain}))
        assert (await frame("ready", "error"))["type"] == "ready"
    async with site.client(authorization=f"Bearer {plain}") as client:
        assert len((await client.get("/api/v1/chat/sessions")).json()["sessions"]) == 1


async def test_a_full_server_is_503_as_before_and_keeps_no_place(open_site: OpenSite) -> None:
    runtime = EchoRuntime(max_num_seqs=1, max_waiting=0)
    runtime.pause_after = 1
    site = await open_site(runtime)
    busy = await site.services.chat.reply(LOCAL, None, [Message("user", "Hi")], SamplingParams(max_tokens=4))
    async with await limited(site, concurrent_replies=3, tokens_per_day=100) as client:
        for path, body in BODIES.items():
            assert (await client.post(path, json=body)).status_code == 503
        limits = (await client.get("/api/v1/me")).json()["limits"]
    assert {limit["name"]: limit["remaining"] for limit in limits} == {"concurrent_replies": 3, "tokens_per_day": 100}
    await busy.aclose()


async def test_the_description_has_the_error_and_the_headers(client: httpx2.AsyncClient) -> None:
    description = (await client.get("/openapi.json")).json()
    for path in BODIES:
        responses = description["paths"][path]["post"]["responses"]
        assert {name.lower() for name in responses["200"]["headers"]} == {*HEADERS, "x-request-id"}
        assert {name.lower() for name in responses["429"]["headers"]} == {*HEADERS, "retry-after", "x-request-id"}
        (content,) = responses["429"]["content"].values()
        schema = "OpenAIErrorBody" if path.startswith("/v1/") else "NativeErrorBody"
        assert content["schema"]["$ref"].endswith(f"/{schema}")
        assert description["components"]["schemas"][schema]["examples"]
