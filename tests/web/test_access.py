"""Who may call: keys, addresses, Host names, origins. Denied by default, on every route there is."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute, iter_route_contexts
from starlette.routing import Mount
from starlette.testclient import TestClient, WebSocketDenialResponse

from .conftest import LOCAL, OpenSite, Site

PUBLIC = {"/api/v1/health/live", "/api/v1/auth/login"}  # reviewed: that the process runs, and how one gets in
ELSEWHERE = ("192.168.1.7", 40000)
NO_KEY = "No API key exists, so only this machine is served"
WHO = "/api/v1/models"
PARAMETERS = (
    *("session_id", "name", "model", "job_id", "reference", "path", "reply_id", "preference_id"),
    *("key_id", "user_id"),
)


def http_routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of every HTTP route, with path parameters filled in."""
    for context in iter_route_contexts(app.routes):
        assert not isinstance(context.original_route, Mount), "a mount needs a row of its own in this test"
        if not isinstance(context.original_route, APIWebSocketRoute):
            path = (context.path or "").replace(":path", "")
            for method in context.methods or ():
                yield method, path.format(**dict.fromkeys(PARAMETERS, "a"))


def socket_paths(app: FastAPI) -> set[str]:
    """Every WebSocket's path."""
    contexts = iter_route_contexts(app.routes)
    return {context.path or "" for context in contexts if isinstance(context.original_route, APIWebSocketRoute)}


async def statuses(site: Site, client: httpx2.AsyncClient) -> AsyncIterator[tuple[str, httpx2.Response]]:
    for method, path in http_routes(site.app):
        yield path, await client.request(method, path, json={} if method in ("POST", "PUT", "PATCH") else None)


async def test_the_walk_finds_the_routes(site: Site) -> None:
    paths = {path for _, path in http_routes(site.app)}
    assert {"/v1/models/a", "/api/v1/chat/sessions/a", "/docs", "/openapi.json", *PUBLIC} <= paths
    assert socket_paths(site.app) == {"/ws/chat", "/ws/training/{job_id}"}


async def test_with_a_key_every_route_asks_for_it_also_on_this_machine(site: Site) -> None:
    await site.key()
    async with site.client() as client:
        async for path, answer in statuses(site, client):
            assert (answer.status_code == 401) == (path not in PUBLIC), (path, answer.text)
            assert "x-request-id" in answer.headers
    async with site.client(authorization="Bearer mc-" + "A" * 43) as client:
        async for path, answer in statuses(site, client):
            assert (answer.status_code == 401) == (path not in PUBLIC), (path, answer.text)


async def test_without_a_key_every_route_serves_this_machine_only(site: Site) -> None:
    async with site.client(client=ELSEWHERE, base="http://myserver.lan:8000") as client:
        async for path, answer in statuses(site, client):
            assert (answer.status_code == 401) == (path not in PUBLIC), (path, answer.text)
            if path not in PUBLIC:
                assert NO_KEY in answer.json()["error"]["message"]
    async with site.client() as client:
        async for path, answer in statuses(site, client):
            assert answer.status_code not in (401, 403), (path, answer.text)


async def test_a_good_key_opens_and_a_revoked_one_closes_for_ever(site: Site) -> None:
    record, key = await site.services.keys.create("laptop")
    for headers in ({"authorization": f"Bearer {key}"}, {"authorization": f"bearer {key}"}, {"x-api-key": key}):
        async with site.client(client=ELSEWHERE, base="http://any.name", **headers) as client:
            assert (await client.get(WHO)).status_code == 200
    await site.services.keys.revoke(record.id)
    async with site.client(authorization=f"Bearer {key}") as client:
        assert (await client.get(WHO)).status_code == 401
    async with site.client() as client:  # the last key is revoked: still not open
        assert (await client.get(WHO)).status_code == 401


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic bWM6", "mc-abc", "Bearer mc-\xe9", "Bearer " + "x" * 9000]
)
async def test_odd_credentials_are_401(site: Site, value: str) -> None:
    await site.key()
    async with site.client() as client:
        answer = await client.get(WHO, headers=[(b"authorization", value.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_key_in_the_url_does_not_count(site: Site) -> None:
    key = await site.key()
    async with site.client() as client:
        assert (await client.get(f"{WHO}?key={key}&api_key={key}&token={key}")).status_code == 401


async def test_the_network_is_served_without_keys_only_when_told_so(open_site: OpenSite) -> None:
    site = await open_site(allow_unauthenticated_network=True)
    async with site.client(client=ELSEWHERE, base="http://192.168.1.2:8000") as client:
        assert (await client.get(WHO)).status_code == 200


async def test_a_client_without_an_address_is_not_this_machine(site: Site) -> None:
    transport = httpx2.ASGITransport(site.app, client=None)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get(WHO)).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("127.0.0.1", 200),
        ("127.8.9.1:1", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("chat.example", 200),
        ("rebind.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.2:8000", 403),
        ("user@127.0.0.1", 403),
        ("127.0.0.1:port", 403),
        ("127.0.0.1/x", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
async def test_without_a_key_unknown_host_names_are_refused(open_site: OpenSite, host: str, status: int) -> None:
    site = await open_site(allowed_hosts="chat.example")
    async with site.client() as client:
        answer = await client.get(WHO, headers={"host": host})
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("https://app.example", 200),
        ("http://localhost:8000", 403),
        ("http://127.0.0.1:3000", 403),
        ("http://127.0.0.1", 403),
        ("https://app.example.evil", 403),
        ("https://app.example:444", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://127.0.0.1:8000@evil.example", 403),
        ("file://", 403),
        ("*", 403),
    ],
)
async def test_pages_of_other_origins_are_refused_on_http_and_websockets(
    open_site: OpenSite, origin: str, status: int
) -> None:
    site = await open_site(allowed_origins="https://app.example")
    async with site.client() as client:
        answer = await client.post("/v1/chat/completions", json={"messages": []}, headers={"origin": origin})
        assert answer.status_code == (403 if status == 403 else 400), answer.text
        if status == 200 and "app" in origin:
            assert answer.headers["access-control-allow-origin"] == origin
        else:
            assert "access-control-allow-origin" not in answer.headers
    assert socket_status(site, "/ws/chat", headers={"origin": origin}) == (101 if status == 200 else 403)


async def test_an_allowed_origin_gets_its_preflight_and_no_other_does(open_site: OpenSite) -> None:
    site = await open_site(allowed_origins="https://app.example,*")
    asked = {"access-control-request-method": "POST"}
    async with site.client() as client:
        allowed = await client.options(WHO, headers={"origin": "https://app.example", **asked})
        other = await client.options(WHO, headers={"origin": "https://evil.example", **asked})
    assert allowed.status_code == 204
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    assert other.status_code == 403  # "*" is no wildcard


async def test_a_page_may_use_every_method_and_header_that_routes_know(open_site: OpenSite) -> None:
    site = await open_site(allowed_origins="https://app.example")
    headers = {"origin": "https://app.example", "access-control-request-method": "PUT"}
    async with site.client() as client:
        allowed = (await client.options(WHO, headers=headers)).headers
    methods = {method for method, _ in http_routes(site.app)}
    assert methods <= set(allowed["access-control-allow-methods"].split(", "))
    described = {
        parameter["name"].lower()
        for path in site.app.openapi()["paths"].values()
        for operation in path.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header"
    }
    assert described
    assert described <= set(allowed["access-control-allow-headers"].split(", "))


async def test_no_answer_is_more_to_a_browser_than_data(site: Site) -> None:
    async with site.client() as client:
        answers = [await client.get(path) for path in (WHO, "/v1/models/a", "/nowhere", "/docs", "/openapi.json")]
        refused = await client.get(WHO, headers={"origin": "https://evil.example"})
    assert [answer.status_code for answer in answers] == [200, 404, 404, 200, 200]
    for answer in (*answers, refused):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert policy.startswith("default-src 'none'")
        assert ("script-src" in policy) == (answer.url.path == "/docs")


def socket_status(site: Site, path: str, *, client: tuple[str, int] = LOCAL, **kwargs: Any) -> int:
    """101, or the status with which the WebSocket was refused."""
    test_client = TestClient(site.app, client=client)
    try:
        with test_client.websocket_connect(f"ws://127.0.0.1:8000{path}", **kwargs) as socket:
            socket.close()
    except WebSocketDenialResponse as refused:
        return refused.status_code
    return 101


@pytest.mark.parametrize("path", ["/ws/chat", "/ws/training/a"])
async def test_websockets_follow_the_same_rules(site: Site, path: str) -> None:
    assert socket_status(site, path) == 101
    assert socket_status(site, path, headers={"host": "rebind.example"}) == 403
    assert socket_status(site, path, client=ELSEWHERE) == 401
    key = await site.key()
    assert socket_status(site, path, headers={"authorization": "Bearer mc-" + "x" * 43}) == 401
    assert socket_status(site, path, subprotocols=["mini-claude", "mc-" + "x" * 43]) == 401
    assert socket_status(site, path, client=ELSEWHERE, headers={"authorization": f"Bearer {key}"}) == 101
    assert socket_status(site, path, client=ELSEWHERE, subprotocols=["mini-claude", key]) == 101
