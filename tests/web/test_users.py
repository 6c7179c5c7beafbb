"""Users over REST: signing in and out; for admins making, changing and removing users; and what is theirs."""

from typing import Any

import httpx2
import pytest

from mini_claude.services.login_attempts import PER_ADDRESS, PER_NAME

from .conftest import PASSWORD, OpenSite, Site

LOGIN = "/api/v1/auth/login"
LOGOUT = "/api/v1/auth/logout"
CHANGE = "/api/v1/auth/password"
USERS = "/api/v1/users"
ME = "/api/v1/me"
ELSEWHERE = ("192.168.1.7", 40000)
OTHER = "another good password"


def bearing(site: Site, token: str) -> httpx2.AsyncClient:
    return site.client(authorization=f"Bearer {token}")


async def sign_in(site: Site, name: str = "ada", password: str = PASSWORD, **where: Any) -> httpx2.Response:
    async with site.client(**where) as client:
        return await client.post(LOGIN, json={"name": name, "password": password})


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """The error without the id of its request."""
    error: dict[str, Any] = answer.json()["error"]
    return {name: value for name, value in error.items() if name != "request_id"}


async def test_a_name_and_a_password_give_a_token_that_opens_what_a_key_opens(site: Site) -> None:
    user = await site.services.users.create("Ada", PASSWORD)
    async with site.client() as client:
        assert (await client.get(ME)).status_code == 401  # a user shuts the door
    made = (await sign_in(site, " ADA ")).json()
    assert (made["token_type"], made["role"], made["name"], made["user_id"]) == ("bearer", "admin", "ada", user.id)
    async with bearing(site, made["access_token"]) as client:
        me = (await client.get(ME)).json()
        assert (me["role"], me["user_name"], me["key_id"]) == ("admin", "ada", None)
        assert me["expires_at"] == made["expires_at"]
        assert (await client.get("/v1/models")).status_code == 200
    async with site.client(
        client=ELSEWHERE, base="http://any.name", authorization=f"Bearer {made['access_token']}"
    ) as far:
        assert (await far.get(ME)).status_code == 200


async def test_unknown_wrong_and_disabled_are_refused_in_the_same_words(site: Site) -> None:
    await site.services.users.create("ada", PASSWORD)
    eve = await site.services.users.create("eve", PASSWORD)
    await site.services.users.disable(eve.id)
    answers = [
        await sign_in(site, "ada", "wrong password"),
        await sign_in(site, "nobody"),
        await sign_in(site, "eve"),
        await sign_in(site, "no name at all!"),
        await sign_in(site, "ada", ""),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert [error_of(answer) for answer in answers] == [error_of(answers[0])] * 5
    assert error_of(answers[0])["code"] == "invalid_login"
    assert PASSWORD not in str([answer.text for answer in answers])


async def test_signing_out_ends_this_token_and_no_other(site: Site) -> None:
    await site.services.users.create("ada", PASSWORD)
    one, two = [(await sign_in(site)).json()["access_token"] for _ in range(2)]
    async with bearing(site, one) as first, bearing(site, two) as second:
        assert (await first.post(LOGOUT)).status_code == 204
        assert (await first.get(ME)).status_code == 401
        assert (await second.get(ME)).status_code == 200


async def test_who_came_by_a_key_or_by_nothing_has_no_token_to_give_back(site: Site) -> None:
    async with site.client() as client:
        assert error_of(await client.post(LOGOUT))["code"] == "no_token"
    async with bearing(site, await site.key()) as client:
        assert error_of(await client.post(LOGOUT))["code"] == "no_token"
        answer = await client.post(CHANGE, json={"old_password": "x", "new_password": OTHER})
        assert (answer.status_code, error_of(answer)["code"]) == (400, "no_token")


async def test_what_a_user_owns_is_there_after_the_next_sign_in(site: Site) -> None:
    await site.services.users.create("ada", PASSWORD)
    said = {"session_id": "new", "messages": [{"role": "user", "content": "Hello"}]}
    async with bearing(site, (await sign_in(site)).json()["access_token"]) as client:
        session_id = (await client.post("/api/v1/chat/completions", json=said)).json()["session_id"]
        await client.post(LOGOUT)
    async with bearing(site, (await sign_in(site)).json()["access_token"]) as client:
        assert (await client.get(f"/api/v1/chat/sessions/{session_id}")).status_code == 200


async def test_a_change_of_ones_password_needs_the_old_one_and_ends_tokens_from_before(site: Site) -> None:
    await site.services.users.create("ada", PASSWORD)
    old = (await sign_in(site)).json()["access_token"]
    async with bearing(site, old) as client:
        wrong = await client.post(CHANGE, json={"old_password": "wrong", "new_password": OTHER})
        assert (wrong.status_code, error_of(wrong)["code"]) == (401, "invalid_login")
        short = await client.post(CHANGE, json={"old_password": PASSWORD, "new_password": "short"})
        assert (short.status_code, error_of(short)["param"]) == (400, "password")
        made = await client.post(CHANGE, json={"old_password": PASSWORD, "new_password": OTHER})
        assert made.status_code == 200, made.text
        assert (await client.get(ME)).status_code == 401
    async with bearing(site, made.json()["access_token"]) as client:
        assert (await client.get(ME)).status_code == 200
    assert [(await sign_in(site, password=each)).status_code for each in (PASSWORD, OTHER)] == [401, 200]


async def test_an_admin_makes_changes_and_removes_users(site: Site) -> None:
    root = await site.token("root", "admin")
    async with bearing(site, root) as client:
        made = await client.post(USERS, json={"name": "ada", "password": PASSWORD, "requests_per_minute": 3})
        assert made.status_code == 201, made.text
        user = made.json()
        assert (user["role"], user["state"], user["requests_per_minute"]) == ("user", "active", 3)
        assert PASSWORD not in made.text
        assert (await client.get(USERS)).json()["users"][1] == user
        place = f"{USERS}/{user['id']}"
        async with bearing(site, await site.token("ada")) as ada:
            limits = (await ada.get(ME)).json()["limits"]
            assert [(limit["name"], limit["limit"]) for limit in limits] == [("requests_per_minute", 3)]
            changed = (await client.patch(place, json={"tokens_per_day": 50, "requests_per_minute": None})).json()
            assert (changed["tokens_per_day"], changed["requests_per_minute"]) == (50, None)
            assert [limit["name"] for limit in (await ada.get(ME)).json()["limits"]] == ["tokens_per_day"]
            assert (await client.patch(place, json={"role": "admin"})).json()["role"] == "admin"
            assert (await ada.get(USERS)).status_code == 200  # at once
            assert (await client.patch(place, json={"disabled": True})).json()["state"] == "disabled"
            assert (await ada.get(ME)).status_code == 401
            assert (await client.patch(place, json={"disabled": False})).json()["state"] == "active"
            assert (await ada.get(ME)).status_code == 401  # old tokens stay dead
        assert (await client.patch(place, json={"password": OTHER})).status_code == 200
        assert (await sign_in(site, "ada", OTHER)).status_code == 200
        assert (await client.delete(place)).status_code == 204
        assert (await client.delete(place)).status_code == 404
        assert (await client.patch(place, json={"disabled": False})).status_code == 404
        assert (await sign_in(site, "ada", OTHER)).status_code == 401
        assert (await client.post(USERS, json={"name": "ada", "password": PASSWORD})).status_code == 201


async def test_who_is_removed_takes_their_words_along_and_leaves_the_door_shut(site: Site) -> None:
    token = await site.token("ada", "admin")
    said = {"session_id": "new", "messages": [{"role": "user", "content": "Hello"}]}
    async with bearing(site, token) as client:
        await client.post("/api/v1/chat/completions", json=said)
        caller = await site.services.credentials.caller(token)
        assert len(await site.services.chat.list(caller, 10)) == 1
        assert (await client.delete(f"{USERS}/{caller.owner}")).status_code == 204
    assert await site.services.chat.list(caller, 10) == ()
    assert await site.services.users.list() == ()
    async with site.client() as client:
        assert (await client.get(ME)).status_code == 401


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"name": ""}, 400, "name"),
        ({"name": "two words"}, 400, "name"),
        ({"name": "x" * 65}, 400, "name"),
        ({"name": "<b>"}, 400, "name"),
        ({"name": "\N{CYRILLIC SMALL LETTER A}da"}, 400, "name"),
        ({"password": "elevenchars"}, 400, "password"),
        ({"password": "x" * 129}, 400, "password"),
        ({"password": "x" * 2000}, 422, "password"),
        ({"role": "root"}, 422, "role"),
        ({"tokens_per_day": -1}, 422, "tokens_per_day"),
        ({"id": "1"}, 422, "id"),
        ({"name": "root"}, 409, "name"),
    ],
)
async def test_what_makes_no_user_is_refused_by_name(
    site: Site, change: dict[str, Any], status: int, param: str
) -> None:
    async with bearing(site, await site.token("root", "admin")) as client:
        answer = await client.post(USERS, json={"name": "ada", "password": PASSWORD, **change})
    assert (answer.status_code, error_of(answer)["param"]) == (status, param), answer.text
    assert str(change.get("password", "-")) not in answer.text or change.get("password") is None
    assert len(await site.services.users.list()) == 1


async def test_no_other_machine_makes_the_first_user(open_site: OpenSite) -> None:
    site = await open_site(allow_unauthenticated_network=True)
    async with site.client(client=ELSEWHERE, base="http://192.168.1.2:8000") as client:
        answer = await client.post(USERS, json={"name": "mallory", "password": PASSWORD})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "first_key_is_local")
    assert not await site.services.credentials.needed()


async def test_attempts_under_one_name_come_to_an_end_also_for_names_that_nobody_has(site: Site) -> None:
    await site.services.users.create("ada", PASSWORD)
    for name in ("ada", "nobody"):
        answers = [
            await sign_in(site, name, "x", client=(f"10.0.{name == 'ada':d}.{n}", 1))
            for n in range(PER_NAME.amount + 1)
        ]
        assert [answer.status_code for answer in answers] == [401] * PER_NAME.amount + [429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert error_of(answers[-1])["code"] == "too_many_logins"
    assert (await sign_in(site, "ada", client=("10.9.9.9", 1))).status_code == 429  # the right one tells nothing either
    assert (await sign_in(site, "eve", client=("10.9.9.9", 1))).status_code == 401


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("2001:db8::1", "2001:db8::2")])
async def test_attempts_from_one_address_come_to_an_end_whatever_the_names(
    site: Site, addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> bool:
        return False

    monkeypatch.setattr(site.services.users._passwords, "verify", never)  # what it costs is not what is tested
    for n in range(PER_ADDRESS.amount):
        assert (await sign_in(site, f"user{n}", client=(addresses[n % len(addresses)], 1))).status_code == 401
    assert (await sign_in(site, "last", client=(addresses[0], 1))).status_code == 429
    assert (await sign_in(site, "last", client=("192.0.2.1", 1))).status_code == 401
