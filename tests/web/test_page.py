"""The page's addresses at a worker: who gets through, what is forwarded, and what happens without its process."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from mini_claude.data.records import KeyRole, Limits
from mini_claude.runtime.sockets import page_socket
from mini_claude.services.login_attempts import PER_NAME
from mini_claude.web import error_handlers
from mini_claude.web.page_line import KEY_HEADER, LIMITS_HEADER, OWNER_HEADER, ROLE_HEADER
from mini_claude.web.routes.page import COOKIE

from .conftest import PASSWORD, OpenSite, Site, eventually, served

KEY_PAGE = "Or an API key"


class FakePage:
    """What stands at the other end of the socket: says what it got; /gradio_api/queue/data never ends by itself."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if scope["path"] == "/gradio_api/queue/data":
            await StreamingResponse(self._for_ever(), media_type="text/event-stream")(scope, receive, send)
            return
        if scope["path"] == "/gradio_api/heartbeat/silent":
            await StreamingResponse(self._once(), media_type="text/event-stream")(scope, receive, send)
            return
        body = await request.body()
        seen = {"path": scope["path"], "query": request.url.query, "size": len(body), "headers": dict(request.headers)}
        await JSONResponse(seen, headers={"x-frame-options": "ALLOWALL"})(scope, receive, send)

    async def _once(self) -> AsyncIterator[bytes]:
        try:
            yield b"data: {}\n\n"
            await asyncio.Event().wait()
        finally:
            self.left.set()

    async def _for_ever(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: {}\n\n"
                await asyncio.sleep(0.01)
        finally:
            self.left.set()


@asynccontextmanager
async def page_process(site: Site) -> AsyncIterator[FakePage]:
    page = FakePage()
    socket = str(page_socket(site.services.settings.data_dir))
    server = uvicorn.Server(uvicorn.Config(page, uds=socket, lifespan="off", log_config=None))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield page
    finally:
        server.should_exit = server.force_exit = True
        await task


@pytest.fixture
async def paged(open_site: OpenSite) -> Site:
    return await open_site(database_url=None, max_dataset_bytes=2048)


async def test_a_server_whose_database_is_in_memory_has_no_page_and_says_why(site: Site) -> None:
    async with site.client() as client:
        answer = await client.get("/")
    assert answer.status_code == 404
    assert "database in memory" in answer.json()["error"]["message"]


async def test_while_the_process_starts_the_page_tries_again_by_itself(paged: Site) -> None:
    async with paged.client() as client:
        page, event = await client.get("/"), await client.post("/gradio_api/queue/join", json={})
    assert page.status_code == 503
    assert 'http-equiv="refresh"' in page.text
    assert page.headers["retry-after"] == "2"
    assert event.status_code == 503
    assert event.json()["error"]["code"] == "page_starting"


async def test_the_local_visitor_is_named_and_a_name_from_outside_is_thrown_away(paged: Site) -> None:
    async with page_process(paged), paged.client() as client:
        seen = (await client.get("/?tab=chat", headers={OWNER_HEADER: "admin", KEY_HEADER: "k"})).json()
    assert (seen["headers"][OWNER_HEADER], seen["headers"][ROLE_HEADER]) == ("local", "admin")
    assert KEY_HEADER not in seen["headers"]
    assert (seen["path"], seen["query"]) == ("/", "tab=chat")


async def test_answers_carry_a_policy_that_lets_nothing_be_fetched_from_elsewhere(paged: Site) -> None:
    async with page_process(paged), paged.client() as client:
        answer = await client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "img-src 'self' data: blob:;" in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "path", ["proxy=http://127.0.0.1/", "api/predict", "run/say", "runs", "vibe-edit", "queue/joined", "openapi.json"]
)
async def test_what_the_page_does_not_need_is_not_let_through(paged: Site, path: str) -> None:
    async with page_process(paged), paged.client() as client:
        answer = await client.get(f"/gradio_api/{path}")
    assert answer.status_code == 404


async def test_with_keys_a_form_asks_for_one_and_its_cookie_opens_the_page(paged: Site) -> None:
    record, key = await paged.services.keys.create("laptop")
    async with page_process(paged), paged.client() as client:
        closed = await client.get("/")
        assert (closed.status_code, KEY_PAGE in closed.text) == (401, True)
        wrong = await client.post("/login", data={"key": "mc-" + "A" * 43})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
        entered = await client.post("/login", data={"key": key})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        seen = (await client.get("/")).json()
        assert (seen["headers"][OWNER_HEADER], seen["headers"][KEY_HEADER]) == (record.id, record.id)
        assert key not in str(seen)  # the page's process never sees it
        await paged.services.keys.revoke(record.id)
        assert (await client.post("/gradio_api/queue/join", json={})).status_code == 401


async def test_a_name_and_a_password_open_the_page_and_its_token_ends_with_signing_out(paged: Site) -> None:
    user = await paged.services.users.create("ada", PASSWORD, limits=Limits(requests_per_minute=3))
    async with page_process(paged), paged.client() as client:
        assert (await client.get("/")).status_code == 401
        wrong = await client.post("/login", data={"name": "ada", "password": "wrong"})
        nobody = await client.post("/login", data={"name": "nobody", "password": PASSWORD})
        assert (wrong.status_code, "set-cookie" in wrong.headers, "is wrong" in wrong.text) == (401, False, True)
        assert nobody.text == wrong.text
        entered = await client.post("/login", data={"name": "Ada", "password": PASSWORD})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"].lower()
        assert {"httponly", "samesite=strict", f"max-age={paged.services.settings.token_seconds:.0f}"} <= set(
            cookie.replace(" ", "").split(";")
        )
        seen = (await client.get("/")).json()["headers"]
        assert (seen[OWNER_HEADER], seen[ROLE_HEADER], KEY_HEADER in seen) == (user.id, "admin", False)
        assert Limits(**json.loads(seen[LIMITS_HEADER])) == user.limits
        token = client.cookies[COOKIE]
        assert token not in str(seen)
        assert (await client.post("/logout")).status_code == 303
    async with paged.client(cookie=f"{COOKIE}={token}") as thief:
        assert (await thief.get("/")).status_code == 401


async def test_the_form_counts_attempts_as_the_api_does(paged: Site) -> None:
    await paged.services.users.create("ada", PASSWORD)
    async with paged.client() as client:
        for _ in range(PER_NAME.amount - 1):
            await client.post("/api/v1/auth/login", json={"name": "ada", "password": "wrong"})
        answers = [await client.post("/login", data={"name": "ada", "password": "wrong"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [401, 429]
    assert "too many attempts" in answers[1].text


async def test_the_limits_of_the_key_are_told_whatever_the_browser_says(paged: Site) -> None:
    _, key = await paged.services.keys.create("guest", limits=Limits(requests_per_minute=3))
    async with page_process(paged), paged.client(cookie=f"{COOKIE}={key}") as client:
        seen = (await client.get("/", headers={LIMITS_HEADER: "{}"})).json()["headers"]
    assert Limits(**json.loads(seen[LIMITS_HEADER])) == Limits(requests_per_minute=3)


@pytest.mark.parametrize("role", ["user", "admin"])
async def test_a_visitor_is_what_the_key_says_whatever_the_browser_says(paged: Site, role: KeyRole) -> None:
    key = await paged.key(role)
    said = [(ROLE_HEADER, "admin"), (ROLE_HEADER.upper(), "user"), (OWNER_HEADER, "local")]
    async with page_process(paged), paged.client(cookie=f"{COOKIE}={key}") as client:
        for method, path in (("GET", "/"), ("POST", "/gradio_api/queue/join"), ("GET", "/config")):
            seen = (await client.request(method, path, headers=said)).json()["headers"]
            assert seen[ROLE_HEADER] == role
            assert seen[OWNER_HEADER] == (await paged.services.keys.list())[0].id
        await paged.end(key)
        assert (await client.get("/")).status_code == 401
        assert (await client.post("/gradio_api/queue/join", json={})).status_code == 401


async def test_the_cookie_opens_the_page_and_nothing_else(paged: Site) -> None:
    key = await paged.key()
    async with paged.client(cookie=f"{COOKIE}={key}") as client:
        assert (await client.get("/api/v1/models")).status_code == 401
        assert (await client.get("/v1/models")).status_code == 401


async def test_signing_out_forgets_the_cookie(paged: Site) -> None:
    key = await paged.key()
    async with paged.client(cookie=f"{COOKIE}={key}") as client:
        answer = await client.post("/logout")
    assert answer.status_code == 303
    assert f'{COOKIE}=""' in answer.headers["set-cookie"]


async def test_an_upload_is_passed_on_up_to_the_largest_dataset(paged: Site) -> None:
    async with page_process(paged), paged.client() as client:
        small = await client.post("/gradio_api/upload", content=b"x" * 2048)
        large = await client.post("/gradio_api/upload", content=b"x" * 2049)
    assert small.json()["size"] == 2048
    assert large.status_code == 413
    assert "max_dataset_bytes" in large.json()["error"]["message"]


async def test_a_visitor_who_leaves_ends_the_stream_at_the_process_too(
    paged: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with page_process(paged) as page, served(paged) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(f"GET /gradio_api/queue/data HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        assert b"200" in await reader.readline()
        writer.close()
        async with asyncio.timeout(5):
            await page.left.wait()
    assert "error" not in {record.levelname.lower() for record in caplog.records}


async def test_a_visitor_who_leaves_while_the_page_is_silent_is_no_fault(
    paged: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(error_handlers.log, "error", lambda event, **_: faults.append(event))
    async with page_process(paged) as page, served(paged) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(f"GET /gradio_api/heartbeat/silent HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        await reader.readuntil(b"data: {}")
        writer.close()
        async with asyncio.timeout(5):
            await page.left.wait()
        await eventually(lambda: "/gradio_api/{path}" in paged.runtime.routes())
    assert faults == []


async def test_a_worker_that_is_told_to_end_does_not_wait_for_open_pages(paged: Site) -> None:
    async with page_process(paged) as page, served(paged) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(f"GET /gradio_api/queue/data HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        assert b"200" in await reader.readline()
        paged.app.state.shutdown.set()
        async with asyncio.timeout(5):
            await page.left.wait()
            while await reader.read(65536):
                continue
        writer.close()
