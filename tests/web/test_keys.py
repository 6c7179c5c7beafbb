"""Keys over REST: who am I; and for admins making, listing and revoking them."""

import time
from typing import Any

import httpx2
import pytest

from mini_claude.data.records import Limits
from mini_claude.services.identity import LOCAL_OWNER

from .conftest import OpenSite, Site

pytestmark = pytest.mark.both_databases

KEYS = "/api/v1/keys"
ME = "/api/v1/me"
ELSEWHERE = ("192.168.1.7", 40000)
NOBODY: dict[str, Any] = {
    **dict.fromkeys(("key_id", "key_name", "user_id", "user_name", "expires_at")),
    "limits": [],
}


def with_key(site: Site, key: str) -> httpx2.AsyncClient:
    return site.client(authorization=f"Bearer {key}")


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """The error without the id of its request."""
    error: dict[str, Any] = answer.json()["error"]
    return {name: value for name, value in error.items() if name != "request_id"}


async def test_the_local_caller_is_an_admin_without_a_key(client: httpx2.AsyncClient) -> None:
    me = (await client.get(ME)).json()
    assert me == NOBODY | {"role": "admin"}


async def test_a_key_tells_whose_it_is_and_until_when(site: Site) -> None:
    ends = time.time() + 3600
    await site.key()
    key, plain = await site.services.keys.create("guest", "user", ends)
    async with with_key(site, plain) as client:
        me = (await client.get(ME)).json()
    assert me == NOBODY | {"role": "user", "key_id": key.id, "key_name": "guest", "expires_at": ends}


async def test_a_key_is_shown_once_listed_without_its_text_and_revoked(site: Site) -> None:
    admin = await site.key()
    async with with_key(site, admin) as client:
        made = await client.post(KEYS, json={"name": "guest"})
        assert made.status_code == 201
        body = made.json()
        key = body.pop("key")
        assert (body["role"], body["state"], body["expires_at"], body["revoked_at"]) == ("user", "active", None, None)
        listed = await client.get(KEYS)
        assert listed.json()["keys"][1] == body
        assert key not in listed.text
        assert key.startswith(body["prefix"])
        async with with_key(site, key) as guest:
            assert (await guest.get(ME)).json()["key_name"] == "guest"
            assert (await client.delete(f"{KEYS}/{body['id']}")).status_code == 204
            assert (await guest.get(ME)).status_code == 401
        assert (await client.get(KEYS)).json()["keys"][1]["state"] == "revoked"
        assert (await client.delete(f"{KEYS}/nothing")).status_code == 404


async def test_a_key_is_made_with_limits_and_lists_them(site: Site) -> None:
    async with with_key(site, await site.key()) as client:
        made = (await client.post(KEYS, json={"name": "guest", "requests_per_minute": 3, "tokens_per_day": 0})).json()
        assert (made["requests_per_minute"], made["tokens_per_day"], made["tokens_per_minute"]) == (3, 0, None)
        listed = (await client.get(KEYS)).json()["keys"][1]
        assert (listed["requests_per_minute"], listed["concurrent_replies"]) == (3, None)
    async with with_key(site, made["key"]) as guest:
        (limit,) = (await guest.get(ME)).json()["limits"]  # 0 is no limit
    assert limit == {"name": "requests_per_minute", "limit": 3, "remaining": 3, "reset_seconds": 0.0}


async def test_the_limits_of_a_key_there_is_are_changed_from_its_next_request_on(site: Site) -> None:
    key, plain = await site.services.keys.create(
        "guest", "user", limits=Limits(requests_per_minute=3, tokens_per_day=9)
    )
    async with with_key(site, await site.key("admin")) as client, with_key(site, plain) as guest:
        place = f"{KEYS}/{key.id}"
        changed = (await client.patch(place, json={"requests_per_minute": 7, "tokens_per_day": None})).json()
        assert (changed["requests_per_minute"], changed["tokens_per_day"]) == (7, None)
        (limit,) = (await guest.get(ME)).json()["limits"]
        assert (limit["name"], limit["limit"]) == ("requests_per_minute", 7)
        assert (await client.patch(place, json={})).json()["requests_per_minute"] == 7
        assert (await client.patch(place, json={"requests_per_minute": -1})).status_code == 422
        assert (await client.patch(place, json={"role": "admin"})).status_code == 422
        assert (await client.patch(f"{KEYS}/nothing", json={})).status_code == 404
        assert (await guest.patch(place, json={"requests_per_minute": 0})).status_code == 403


async def test_an_expired_key_is_refused_in_the_words_for_an_unknown_one(site: Site) -> None:
    admin, guest = await site.key(), await site.key()
    async with with_key(site, guest) as client, with_key(site, "mc-" + "A" * 43) as stranger:
        assert (await client.get(ME)).status_code == 200
        await site.end(guest)
        ended, unknown = await client.get(ME), await stranger.get(ME)
    assert ended.status_code == unknown.status_code == 401
    assert error_of(ended) == error_of(unknown)
    async with with_key(site, admin) as client:
        assert [key["state"] for key in (await client.get(KEYS)).json()["keys"]] == ["active", "expired"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"name": ""}, 422, "name"),
        ({"name": "bell\a"}, 400, "name"),
        ({"name": "x" * 201}, 422, "name"),
        ({"role": "root"}, 422, "role"),
        ({"expires_at": 1}, 400, "expires_at"),
        ({"expires_at": 1e18}, 400, "expires_at"),
        ({"expires_at": 10**400}, 422, "expires_at"),
        ({"expires_at": "tomorrow"}, 422, "expires_at"),
        ({"owner": LOCAL_OWNER}, 422, "owner"),
        ({"requests_per_minute": -1}, 422, "requests_per_minute"),
        ({"tokens_per_day": 1.5}, 422, "tokens_per_day"),
        ({"concurrent_replies": 10**13}, 422, "concurrent_replies"),
        ({"limits": {}}, 422, "limits"),
    ],
)
async def test_what_makes_no_key_is_refused_by_name(
    site: Site, change: dict[str, Any], status: int, param: str
) -> None:
    async with site.client() as client:
        answer = await client.post(KEYS, json={"name": "guest", **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert await site.services.keys.list() == ()


async def test_the_first_key_is_an_admins_and_closes_the_server(site: Site) -> None:
    async with site.client() as client:
        made = (await client.post(KEYS, json={"name": "mine"})).json()
        assert made["role"] == "admin"
        assert (await client.get(KEYS)).status_code == 401
    async with with_key(site, made["key"]) as client:
        assert (await client.get(ME)).json()["role"] == "admin"


async def test_no_other_machine_makes_the_first_key(open_site: OpenSite) -> None:
    site = await open_site(allow_unauthenticated_network=True)
    async with site.client(client=ELSEWHERE, base="http://192.168.1.2:8000") as client:
        assert (await client.get(ME)).json()["role"] == "admin"
        answer = await client.post(KEYS, json={"name": "mine"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "first_key_is_local")
    assert not await site.services.credentials.needed()


async def test_the_description_has_examples_and_says_what_is_for_admins(client: httpx2.AsyncClient) -> None:
    description = (await client.get("/openapi.json")).json()
    for path, method in ((KEYS, "get"), (KEYS, "post"), ("/api/v1/models/load", "post"), ("/api/v1/metrics", "get")):
        operation = description["paths"][path][method]
        assert "admin_only" in operation["responses"]["403"]["description"]
        assert "For admins." in operation["description"]
    assert "admin_only" not in str(description["paths"][ME]["get"]["responses"])
    schemas = description["components"]["schemas"]
    assert all(schemas[name]["examples"] for name in ("Me", "KeyCreate", "KeyPublic", "KeyMade"))
