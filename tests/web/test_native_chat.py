"""POST /api/v1/chat/completions and the sessions behind it."""

import json
from typing import Any

import httpx2
import pytest

from .conftest import OpenSite, Site
from .echo_runtime import EchoRuntime

pytestmark = pytest.mark.both_databases

CHAT = "/api/v1/chat/completions"
SESSIONS = "/api/v1/chat/sessions"


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def events(text: str) -> list[tuple[str, Any]]:
    """(event, data) of every frame of a native stream; comments are left out."""
    frames = [frame.split("\n") for frame in text.removesuffix("\n\n").split("\n\n") if not frame.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


async def test_the_least_request_gets_at_least_the_promised_fields(client: httpx2.AsyncClient, site: Site) -> None:
    answer = (await client.post(CHAT, json={"messages": said("hello")})).json()
    assert answer["response"] == "hello"
    assert answer["tokens_used"] == answer["usage"]["total_tokens"] == 16
    assert answer["processing_time"] > 0
    assert (answer["session_id"], answer["model"], answer["finish_reason"]) == (None, "smollm2-135m", "stop")
    params = site.runtime.requests[0].params
    assert (params.max_tokens, params.temperature) == (512, 0.7)


async def test_a_stateless_request_is_answered_from_its_messages_and_stores_nothing(
    client: httpx2.AsyncClient, site: Site
) -> None:
    body = {"messages": [*said("a"), {"role": "assistant", "content": "b"}, *said("c")], "system": "be brief"}
    answer = await client.post(CHAT, json=body)
    assert answer.json()["response"] == "be briefabc"  # an echo of the whole prompt
    assert (await client.get(SESSIONS)).json() == {"sessions": []}


async def test_a_session_is_made_continued_listed_renamed_and_deleted(client: httpx2.AsyncClient) -> None:
    first = (await client.post(CHAT, json={"messages": said("one"), "session_id": "new"})).json()
    session_id = first["session_id"]
    second = (await client.post(CHAT, json={"messages": said("two"), "session_id": session_id})).json()
    assert second["session_id"] == session_id
    assert second["response"] == "oneonetwo"

    session = (await client.get(f"{SESSIONS}/{session_id}")).json()
    assert session["title"] == "one"
    assert [turn["content"] for turn in session["turns"]] == ["one", "one", "two", "oneonetwo"]
    assert session["path"] == [turn["id"] for turn in session["turns"]]
    assert session["head_turn_id"] == second["reply_id"]

    renamed = await client.patch(f"{SESSIONS}/{session_id}", json={"title": "Numbers"})
    assert renamed.json()["title"] == "Numbers"
    assert [each["title"] for each in (await client.get(SESSIONS)).json()["sessions"]] == ["Numbers"]

    assert (await client.delete(f"{SESSIONS}/{session_id}")).status_code == 204
    assert (await client.get(f"{SESSIONS}/{session_id}")).status_code == 404
    assert (await client.delete(f"{SESSIONS}/{session_id}")).status_code == 404


async def test_a_turn_can_be_edited_regenerated_and_its_branches_chosen(client: httpx2.AsyncClient) -> None:
    first = (await client.post(CHAT, json={"messages": said("one"), "session_id": "new"})).json()
    session = {"session_id": first["session_id"]}
    edited = (await client.post(CHAT, json={**session, "messages": said("uno"), "parent_id": ""})).json()
    assert edited["response"] == "uno"
    again = {**session, "messages": [], "parent_id": edited["user_turn_id"]}
    regenerated = (await client.post(CHAT, json=again)).json()
    assert regenerated["user_turn_id"] == edited["user_turn_id"]
    assert regenerated["reply_id"] != edited["reply_id"]

    place = f"{SESSIONS}/{first['session_id']}"
    assert len((await client.get(place)).json()["turns"]) == 5
    chosen = await client.patch(place, json={"head_turn_id": first["reply_id"]})
    assert chosen.json()["path"] == [first["user_turn_id"], first["reply_id"]]
    assert (await client.patch(place, json={"head_turn_id": "nothing"})).status_code == 404


async def test_a_session_that_overflows_says_which_turns_were_dropped(open_site: OpenSite) -> None:
    site = await open_site(EchoRuntime(context_length=100))
    async with site.client() as client:
        body = {"messages": said("x" * 30), "session_id": "new", "max_tokens": 24}
        first = (await client.post(CHAT, json=body)).json()
        body["session_id"] = first["session_id"]
        second = (await client.post(CHAT, json=body)).json()
    assert first["dropped_turn_ids"] == []
    assert second["dropped_turn_ids"] == [first["user_turn_id"], first["reply_id"]]


async def test_a_stateless_overflow_is_refused_with_the_numbers(client: httpx2.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"messages": said("x"), "max_tokens": 4000})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "2048" in error["message"]


async def test_a_stream_is_start_deltas_and_end(client: httpx2.AsyncClient) -> None:
    body = {"messages": said("hello"), "session_id": "new", "stream": True, "logprobs": 1}
    answer = await client.post(CHAT, json=body)
    (start, facts), *deltas, (end, last) = events(answer.text)
    assert (start, end) == ("start", "end")
    assert {name for name, _ in deltas} == {"delta"}
    assert "".join(delta["text"] for _, delta in deltas) == "hello"
    assert deltas[1][1]["logprobs"][0]["token"] == "h"
    assert (last["finish_reason"], last["usage"]["completion_tokens"]) == ("stop", 8)
    session = (await client.get(f"{SESSIONS}/{facts['session_id']}")).json()
    assert [turn["id"] for turn in session["turns"]] == [facts["user_turn_id"], facts["reply_id"]]


async def test_a_stream_that_breaks_ends_with_an_error_event(open_site: OpenSite) -> None:
    runtime = EchoRuntime()
    runtime.die_after = 2
    site = await open_site(runtime)
    async with site.client() as client:
        answer = await client.post(CHAT, json={"messages": said("hello"), "stream": True})
    name, data = events(answer.text)[-1]
    assert name == "error"
    assert data["error"]["code"] == "engine_died"
    assert data["error"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({}, "messages"),
        ({"messages": said("x"), "parent_id": "a"}, "parent_id"),
        ({"messages": [], "session_id": "a"}, "messages"),
        ({"messages": said("x") * 2, "session_id": "a"}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}], "session_id": "a"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "system", "content": "x"}], "system": "y"}, "system"),
        ({"messages": said("x"), "temperatur": 1}, "temperatur"),
    ],
)
async def test_a_request_that_cannot_be_meant_is_422_and_names_the_field(
    client: httpx2.AsyncClient, body: dict[str, Any], param: str
) -> None:
    answer = await client.post(CHAT, json=body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "param", "request_id"}
    assert error["param"] == param
    assert param in error["message"]


async def test_a_blank_message_in_a_session_names_the_field_that_was_sent(client: httpx2.AsyncClient) -> None:
    response = await client.post(CHAT, json={"messages": said("  "), "session_id": "new"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


async def test_an_unknown_session_is_404(client: httpx2.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"messages": said("x"), "session_id": "nothing"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


async def test_another_keys_session_does_not_exist(site: Site) -> None:
    first, second = await site.key(), await site.key()
    async with site.client(authorization=f"Bearer {first}") as client:
        made = (await client.post(CHAT, json={"messages": said("mine"), "session_id": "new"})).json()
    place = f"{SESSIONS}/{made['session_id']}"
    async with site.client(authorization=f"Bearer {second}") as client:
        assert (await client.get(place)).status_code == 404
        assert (await client.delete(place)).status_code == 404
        assert (await client.patch(place, json={"title": "yours"})).status_code == 404
        answer = await client.post(CHAT, json={"messages": said("x"), "session_id": made["session_id"]})
        assert answer.status_code == 404
        assert (await client.get(SESSIONS)).json()["sessions"] == []
