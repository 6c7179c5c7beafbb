"""The access matrix: anonymous, two users and an admin at every route and WebSocket there is, with each other's ids.

All of it twice: with keys, and with the tokens of people who signed in with a password.

Every route stands in one of the four lists below. A new one fails these tests until somebody decides who may call it.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute, iter_route_contexts
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from mini_claude.data.adapters import AdapterRepository
from mini_claude.data.records import KeyRole
from mini_claude.services.tokens import PREFIX as TOKEN_PREFIX

from .conftest import OpenSite, Site, served
from .test_access import PARAMETERS

Route = tuple[str, str]  # method and template

# Anybody may know that the process runs, and try to sign in.
PUBLIC: Final[frozenset[Route]] = frozenset({("GET", "/api/v1/health/live"), ("POST", "/api/v1/auth/login")})

# What manages the server for everybody, or tells of everybody.
ADMIN: Final[frozenset[Route]] = frozenset(
    {
        ("GET", "/api/v1/metrics"),
        ("GET", "/api/v1/keys"),
        ("POST", "/api/v1/keys"),
        ("PATCH", "/api/v1/keys/{key_id}"),
        ("DELETE", "/api/v1/keys/{key_id}"),
        ("GET", "/api/v1/users"),
        ("POST", "/api/v1/users"),
        ("PATCH", "/api/v1/users/{user_id}"),
        ("DELETE", "/api/v1/users/{user_id}"),
        ("POST", "/api/v1/models/load"),
        ("POST", "/api/v1/models/unload"),
        ("PUT", "/api/v1/default-model"),
    }
)

# For every key: answers, what is the caller's own without being named, and what all share and nobody changes here.
EVERYBODY: Final[frozenset[Route]] = frozenset(
    {
        ("GET", "/api/v1/health"),
        ("GET", "/api/v1/me"),
        ("POST", "/api/v1/auth/logout"),  # of one's own token
        ("POST", "/api/v1/auth/password"),  # one's own
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/docs/{name}"),
        ("GET", "/api/v1/chat/sessions"),
        ("POST", "/api/v1/preferences"),
        ("GET", "/api/v1/preferences"),
        ("POST", "/api/v1/datasets"),
        ("GET", "/api/v1/datasets"),
        ("POST", "/api/v1/datasets/from-feedback"),
        ("GET", "/api/v1/training/jobs"),
        ("GET", "/api/v1/models"),
        ("GET", "/api/v1/models/{name}"),
        ("GET", "/api/v1/models/adapters"),
        ("POST", "/api/v1/models/adapters"),  # an adapter of the caller's own
        ("GET", "/api/v1/models/adapters/{reference}"),  # whoever trained it, all may chat with it
        ("GET", "/api/v1/default-model"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
        ("GET", "/"),
        ("POST", "/login"),
        ("POST", "/logout"),
        ("GET", "/gradio_api/{path}"),
        ("POST", "/gradio_api/{path}"),  # the page's events ask for themselves: tests/web/page/test_visitor.py
        ("GET", "/static/{path}"),
        ("GET", "/assets/{path}"),
        ("GET", "/manifest.json"),
        ("GET", "/favicon.ico"),
        ("GET", "/theme.css"),
        ("GET", "/config"),
    }
)


@dataclass(frozen=True)
class Things:
    """What Ada owns, by the names that paths give it."""

    session_id: str
    reply_id: str
    turn_id: str
    preference_id: str
    job_id: str
    reference: str  # of an adapter
    name: str = "rows"  # of a dataset


Body = Callable[[Things], dict[str, Any] | None]


def nothing(_: Things) -> dict[str, Any] | None:
    return None


def words(text: str = "Hello") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# What names something of somebody's, in the path or in the body. Those that delete come last.
OWNED: Final[dict[Route, Body]] = {
    ("GET", "/api/v1/chat/sessions/{session_id}"): nothing,
    ("GET", "/api/v1/chat/sessions/{session_id}/export"): nothing,
    ("GET", "/api/v1/chat/sessions/{session_id}/feedback"): nothing,
    ("PATCH", "/api/v1/chat/sessions/{session_id}"): lambda _: {"title": "mine now"},
    ("PUT", "/api/v1/chat/feedback/{reply_id}"): lambda _: {"rating": "up"},
    ("POST", "/api/v1/chat/completions"): lambda things: {"session_id": things.session_id, "messages": words()},
    ("POST", "/api/v1/xray"): lambda things: {"reply_id": things.reply_id},
    ("GET", "/api/v1/datasets/{name}"): nothing,
    ("POST", "/api/v1/datasets/{name}/preview"): lambda _: {},
    ("POST", "/api/v1/training/jobs"): lambda things: {"dataset_path": things.name, "adapter_name": "other"},
    ("GET", "/api/v1/training/jobs/{job_id}"): nothing,
    ("GET", "/api/v1/training/jobs/{job_id}/progress"): nothing,
    ("POST", "/api/v1/training/jobs/{job_id}/resume"): nothing,
    ("POST", "/api/v1/models/adapters/{reference}/export"): lambda _: {},
    ("POST", "/api/v1/models/adapters/{reference}/verify"): nothing,
    ("DELETE", "/api/v1/training/jobs/{job_id}"): nothing,
    ("DELETE", "/api/v1/models/adapters/{reference}"): nothing,
    ("DELETE", "/api/v1/preferences/{preference_id}"): nothing,
    ("DELETE", "/api/v1/datasets/{name}"): nothing,
    ("DELETE", "/api/v1/chat/sessions/{session_id}"): nothing,
}
# What has a name in its path and no owner.
SHARED: Final[frozenset[Route]] = frozenset(
    {
        ("PATCH", "/api/v1/keys/{key_id}"),
        ("DELETE", "/api/v1/keys/{key_id}"),
        ("PATCH", "/api/v1/users/{user_id}"),
        ("DELETE", "/api/v1/users/{user_id}"),
        ("GET", "/api/v1/models/{name}"),
        ("GET", "/api/v1/models/adapters/{reference}"),
        ("GET", "/v1/models/{model}"),
        ("GET", "/docs/{name}"),
        ("GET", "/gradio_api/{path}"),
        ("POST", "/gradio_api/{path}"),
        ("GET", "/static/{path}"),
        ("GET", "/assets/{path}"),
    }
)
# Their owner starts a process with a model; that it may is tested with what it does.
SLOW: Final = ("/preview", "/export", "/verify", "/xray")
SIGN_OUT: Final = {("POST", "/logout"), ("POST", "/api/v1/auth/logout")}
SOCKETS: Final = {"/ws/chat", "/ws/training/{job_id}"}


def routes(app: FastAPI) -> Iterator[Route]:
    for context in iter_route_contexts(app.routes):
        if not isinstance(context.original_route, APIWebSocketRoute):
            for method in context.methods or ():
                yield method, (context.path or "").replace(":path", "")


def sockets(app: FastAPI) -> set[str]:
    contexts = iter_route_contexts(app.routes)
    return {context.path or "" for context in contexts if isinstance(context.original_route, APIWebSocketRoute)}


async def call(client: httpx2.AsyncClient, route: Route, things: Things | None = None) -> httpx2.Response:
    """The route with the ids of `things`, or with ids that nothing has."""
    method, template = route
    path = template.format(**dict.fromkeys(PARAMETERS, "a") | (asdict(things) if things is not None else {}))
    body = OWNED[route](things) if things is not None else {}
    if method == "GET" or body is None:
        return await client.request(method, path)
    return await client.request(method, path, json=body)


@dataclass
class Cast:
    """A site with keys, or tokens. Eve is another user, root an admin who is not Ada either."""

    site: Site
    keys: dict[str, str]
    things: Things

    def client(self, who: str | None) -> httpx2.AsyncClient:
        return self.site.client() if who is None else self.site.client(authorization=f"Bearer {self.keys[who]}")

    async def call(self, client: httpx2.AsyncClient, who: str, route: Route) -> httpx2.Response:
        """The route with ids that nothing has; whoever is signed out by it signs in again."""
        answer = await call(client, route)
        if route in SIGN_OUT and self.keys[who].startswith(TOKEN_PREFIX):
            client.headers["authorization"] = f"Bearer {await self.site.token(who)}"
        return answer


async def ada_makes(site: Site, key: str, owner: str) -> Things:
    async with site.client(authorization=f"Bearer {key}") as client:
        chat = await client.post("/api/v1/chat/completions", json={"session_id": "new", "messages": words()})
        answers = {side: {"model": "m", "text": side, "cut": False} for side in ("chosen", "rejected")}
        preference = await client.post("/api/v1/preferences", json={"messages": words(), "blind": True, **answers})
        file = ("rows.jsonl", b'["Hi", "Yo"]\n["What?", "That."]\n')
        dataset = await client.post("/api/v1/datasets", files={"file": file}, data={"name": "rows"})
        job = await client.post("/api/v1/training/jobs", json={"dataset_path": "rows"})
        for answer in (chat, preference, dataset, job):
            assert answer.is_success, answer.text
    (site.services.settings.adapters_dir / "folder").mkdir(parents=True)
    adapter = AdapterRepository(site.services.database).add(owner, "smollm2-135m", "bot", "folder", {}, None)
    said = chat.json()
    return Things(
        session_id=said["session_id"],
        reply_id=said["reply_id"],
        turn_id=said["user_turn_id"],
        preference_id=preference.json()["id"],
        job_id=job.json()["id"],
        reference=adapter.reference,
    )


ROLES: Final[dict[str, KeyRole]] = {"root": "admin", "ada": "user", "eve": "user"}


@pytest.fixture(params=["keys", "tokens"])
async def cast(request: pytest.FixtureRequest, open_site: OpenSite) -> Cast:
    site = await open_site(database_url=None)  # jobs need a file
    if request.param == "keys":
        keys = {who: await site.key(role) for who, role in ROLES.items()}
    else:
        keys = {who: await site.token(who, role) for who, role in ROLES.items()}
    owner = (await site.services.credentials.caller(keys["ada"])).owner
    return Cast(site, keys, await ada_makes(site, keys["ada"], owner))


def test_every_route_was_classified_once(site: Site) -> None:
    lists = (PUBLIC, ADMIN, EVERYBODY, OWNED.keys())
    classified = {route for routes in lists for route in routes}
    there = set(routes(site.app))
    assert there - classified == set(), "decide who may call this, and put it in one of the lists"
    assert classified - there == set(), "this is no route any more"
    assert len(classified) == sum(len(routes) for routes in lists)
    assert sockets(site.app) == SOCKETS


def test_what_a_path_names_is_somebodys_unless_it_was_decided_that_it_is_everybodys(site: Site) -> None:
    named = {(method, path) for method, path in routes(site.app) if "{" in path}
    assert named - OWNED.keys() == SHARED, "a foreign id must be 404 there: put the route into OWNED"


async def test_anonymous_gets_in_nowhere_whatever_they_name(cast: Cast) -> None:
    async with cast.client(None) as client:
        for route in routes(cast.site.app):
            for things in (None, cast.things) if route in OWNED else (None,):
                answer = await call(client, route, things)
                assert (answer.status_code == 401) == (route not in PUBLIC), (route, answer.text)


@pytest.mark.parametrize("who", ["ada", "eve"])
async def test_a_user_is_refused_at_each_route_for_admins_and_at_no_other(cast: Cast, who: str) -> None:
    async with cast.client(who) as client:
        for route in routes(cast.site.app):
            answer = await cast.call(client, who, route)
            assert (answer.status_code == 403) == (route in ADMIN), (route, answer.text)
            if route in ADMIN:
                error = answer.json()["error"]
                assert (error["code"], "--role admin" in error["message"]) == ("admin_only", True)
            else:
                assert answer.status_code != 401 or route == ("POST", "/login"), route  # that key comes by a form
    assert cast.site.runtime.loaded.keys() == {"smollm2-135m"}  # by Ada's chat


async def test_an_admin_is_refused_nowhere(cast: Cast) -> None:
    async with cast.client("root") as client:
        for route in routes(cast.site.app):
            answer = await cast.call(client, "root", route)
            assert answer.status_code not in (401, 403) or route == ("POST", "/login"), (route, answer.text)


async def test_what_is_anothers_is_not_there_for_users_nor_for_admins(cast: Cast) -> None:
    for who in ("eve", "root"):
        async with cast.client(who) as client:
            for route in OWNED:
                answer = await call(client, route, cast.things)
                assert answer.status_code == 404, (who, route, answer.text)
            for route in EVERYBODY:  # lists hold one's own
                if "{" not in route[1] and route[0] == "GET" and route[1].startswith("/api"):
                    answer = await client.get(route[1])
                    assert cast.things.session_id not in answer.text, route
                    assert cast.things.job_id not in answer.text, route
                    assert cast.things.preference_id not in answer.text, route
    async with cast.client("ada") as client:  # all of it is still there, and hers
        assert (await call(client, ("GET", "/api/v1/chat/sessions/{session_id}"), cast.things)).json()[
            "title"
        ] != "mine now"
        for route in OWNED:
            if not route[1].endswith(SLOW):
                answer = await call(client, route, cast.things)
                assert answer.is_success or answer.status_code == 409, (route, answer.text)


async def frame_after(address: str, path: str, key: str | None, *frames: dict[str, Any]) -> dict[str, Any]:
    """What comes after these frames were sent, "ready" left out; "closed" with the reason where nothing does."""
    headers = {} if key is None else {"x-api-key": key}
    async with connect(f"ws://{address}{path}", additional_headers=headers) as socket, asyncio.timeout(5):
        for frame in frames:
            await socket.send(json.dumps(frame))
        while True:
            answer: dict[str, Any] = json.loads(await socket.recv())
            if answer["type"] != "ready":
                return answer


def frames_of(things: Things) -> list[dict[str, Any]]:
    """Every frame of /ws/chat that names something of somebody's."""
    return [
        {"type": "chat", "message": "x", "session_id": things.session_id},
        {"type": "regenerate", "session_id": things.session_id, "parent_id": things.turn_id},
        {"type": "resume", "reply_id": things.reply_id},
        {"type": "stop", "reply_id": things.reply_id},
    ]


async def test_websockets_follow_the_same_matrix(cast: Cast) -> None:
    job = f"/ws/training/{cast.things.job_id}"
    async with cast.client("ada") as client:
        await client.delete(f"/api/v1/training/jobs/{cast.things.job_id}")  # so that its events have an end
    async with served(cast.site) as address:
        for frame in frames_of(cast.things):
            assert (await frame_after(address, "/ws/chat", None, frame))["code"] == "invalid_api_key"
            for who in ("eve", "root"):
                answer = await frame_after(address, "/ws/chat", cast.keys[who], frame)
                assert answer["code"] in ("session_not_found", "reply_not_found"), (who, frame, answer)
        assert (await frame_after(address, job, None, {"type": "hello"}))["code"] == "invalid_api_key"
        for who in ("eve", "root"):
            assert (await frame_after(address, job, cast.keys[who]))["code"] == "job_not_found"
        for frame in frames_of(cast.things)[:3]:
            assert (await frame_after(address, "/ws/chat", cast.keys["ada"], frame))["type"] == "start"
        assert (await frame_after(address, job, cast.keys["ada"]))["type"] in ("event", "end")
        with pytest.raises(ConnectionClosed):
            async with connect(f"ws://{address}/ws/chat") as socket:
                await socket.send(json.dumps({"type": "auth", "key": "mc-" + "A" * 43}))
                while True:
                    await socket.recv()
