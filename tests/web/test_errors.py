"""Errors: one shape for each API, an id on every answer, and nothing that a client should not see."""

import json
from typing import Any

import httpx2
import pytest

from mini_claude.errors import (
    Conflict,
    ContextLengthExceeded,
    EngineDied,
    Forbidden,
    InternalError,
    InvalidRequest,
    MiniClaudeError,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    StorageError,
    Unauthorized,
    UnsafeModelFile,
)
from mini_claude.runtime.messages import RequestServed
from mini_claude.web.error_handlers import openai_error, status_of

from .conftest import OpenSite, Site

OPENAI = "/v1/chat/completions"
NATIVE = "/api/v1/chat/completions"
SECRET = "the launch code is 0000"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("x"), 400),
        (ContextLengthExceeded("x"), 400),
        (Unauthorized("x"), 401),
        (Forbidden("x"), 403),
        (NotFound("x"), 404),
        (Conflict("x"), 409),
        (PayloadTooLarge("x"), 413),
        (RateLimited("x"), 429),
        (UnsafeModelFile("x"), 422),
        (InternalError("x"), 500),
        (Overloaded("x"), 503),
        (EngineDied("x"), 503),
        (StorageError("x"), 503),
        (MiniClaudeError("x"), 500),
    ],
)
def test_the_class_decides_the_status(error: MiniClaudeError, status: int) -> None:
    assert status_of(error, openai=True) == status_of(error, openai=False) == status
    assert openai_error(error)["type"] == (
        "server_error"
        if status >= 500
        else {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            status, "invalid_request_error"
        )
    )


def assert_openai(answer: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")
    return error


def assert_native(answer: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert set(error) == {"code", "message", "param", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    return error


async def test_paths_and_methods_that_do_not_exist(client: httpx2.AsyncClient) -> None:
    paths = (("/v1/nothing", assert_openai), ("/api/v1/nothing", assert_native), ("/nothing", assert_native))
    for path, check in paths:
        answer = await client.get(path)
        assert answer.status_code == 404
        assert check(answer)["code"] == "unknown_url"
    for path, check in ((OPENAI, assert_openai), (NATIVE, assert_native)):
        answer = await client.delete(path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
        assert "POST" in check(answer)["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[1, 2",
        b'{"messages": }',
        b'\xff\xfe{"a": 1}',
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b'{"n": ' + b"9" * 5000 + b"}",
        b"\x00",
    ],
)
async def test_a_body_that_is_no_json_object_is_one_clear_sentence(client: httpx2.AsyncClient, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    openai = await client.post(OPENAI, content=content, headers=headers)
    assert openai.status_code == 400
    assert "JSON" in assert_openai(openai)["message"]
    native = await client.post(NATIVE, content=content, headers=headers)
    assert native.status_code in (400, 422)
    assert assert_native(native)["code"] == "invalid_json"


async def test_json_with_another_content_type_is_told_the_right_one(client: httpx2.AsyncClient) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await client.post(OPENAI, content=b'{"messages": []}', headers={"content-type": content_type})
        assert answer.status_code == 400
        assert "Content-Type: application/json" in assert_openai(answer)["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]},
        {"messages": [{"role": "user", "content": "x"}], "stop": ["\ud800"]},
        {"messages": [{"role": "user", "content": "x"}], "user": "\ud800"},
        {"messages": [{"role": "user", "content": "x"}], "metadata": {"\ud800": "x"}},
        {"messages": [{"role": "user", "content": "x"}], "\ud800": 1},
        {"messages": [{"role": "\ud800", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "model": "\ud800"},
        {"messages": [{"role": "user", "content": [{"type": "\ud800"}]}]},
        {"messages": [{"role": "user", "content": "x"}], "session_id": "\ud800"},
        {"messages": [{"role": "user", "content": "x"}], "logit_bias": {"\ud800": 1}},
        {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "\ud800"}},
    ],
)
async def test_half_a_surrogate_pair_is_refused_wherever_it_stands(
    client: httpx2.AsyncClient, body: dict[str, Any]
) -> None:
    for path in (OPENAI, NATIVE):
        answer = await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, answer.text


async def test_a_bug_gives_a_request_id_and_nothing_else(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(site.runtime, "start", broken)
    body = {"messages": [{"role": "user", "content": SECRET}]}
    async with site.client() as client:
        for path, check in ((OPENAI, assert_openai), (NATIVE, assert_native)):
            answer = await client.post(path, json=body)
            assert answer.status_code == 500
            error = check(answer)
            assert error["code"] == "internal_error"
            assert answer.headers["x-request-id"] in error["message"]
            assert SECRET not in answer.text
    logged = "".join(capsys.readouterr())
    assert SECRET not in logged
    assert answer.headers["x-request-id"] in logged
    assert "RuntimeError" in logged


async def test_a_bug_in_mid_stream_is_an_error_frame(open_site: OpenSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site = await open_site()
    monkeypatch.setattr("mini_claude.web.openai_format._choices", None)
    async with site.client() as client:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        answer = await client.post(OPENAI, json=body)
    last = json.loads(answer.text.removesuffix("\n\n").split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "internal_error"


async def test_prompts_and_keys_are_in_no_log_line(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    key = await site.key()
    wrong = "mc-" + "w" * 43
    for sent in (key, wrong):
        async with site.client(authorization=f"Bearer {sent}") as client:
            for body in (
                {"messages": [{"role": "user", "content": SECRET}]},
                {"messages": [{"role": "user", "content": SECRET}], SECRET: 1},
                {"messages": SECRET},
                {"messages": [{"role": "user", "content": SECRET}], "stream": True},
            ):
                await client.post(OPENAI, json=body)
                await client.post(NATIVE, json=body)
    logged = "".join(capsys.readouterr())
    assert "request" in logged
    for secret in (SECRET, key, wrong):
        assert secret not in logged


async def test_ten_thousand_paths_make_one_label(site: Site, client: httpx2.AsyncClient) -> None:
    await client.get("/api/v1/chat/sessions/one")
    for number in range(10_000):
        await client.request(f"M{number}" if number < 100 else "GET", f"/{number}/v1/models/{number}")
        if number % 100 == 0:
            await client.get(f"/api/v1/chat/sessions/{number}")
            await client.get(f"/v1/models/{number}/x")
    assert site.runtime.routes() == {"unmatched", "/api/v1/chat/sessions/{session_id}", "/v1/models/{model}"}
    methods = {fact.method for fact in site.runtime.facts if isinstance(fact, RequestServed)}
    assert methods == {"GET", "OTHER"}


async def test_templates_label_what_matched_whatever_the_status(site: Site, client: httpx2.AsyncClient) -> None:
    await client.delete(OPENAI)
    await client.post(OPENAI, json={})
    await client.get("/api/v1/health/live")
    assert site.runtime.routes() == {OPENAI, "/api/v1/health/live"}
