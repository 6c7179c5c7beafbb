"""Feedback, search and export of sessions over REST."""

from typing import Any

import httpx2
import pytest

from .conftest import Site


async def say(client: httpx2.AsyncClient, text: str = "Hello") -> dict[str, Any]:
    answer = await client.post(
        "/api/v1/chat/completions", json={"session_id": "new", "messages": [{"role": "user", "content": text}]}
    )
    said: dict[str, Any] = answer.json()
    return said


async def test_a_thumb_and_a_correction_are_kept_and_taken_away(client: httpx2.AsyncClient) -> None:
    said = await say(client)
    path = f"/api/v1/chat/feedback/{said['reply_id']}"
    given = await client.put(path, json={"rating": "down", "correction": "It is Paris."})
    assert (given.status_code, given.json()["rating"]) == (200, "down")
    listed = (await client.get(f"/api/v1/chat/sessions/{said['session_id']}/feedback")).json()["feedback"]
    assert [(each["reply_id"], each["correction"]) for each in listed] == [(said["reply_id"], "It is Paris.")]
    await client.put(path, json={})
    assert (await client.get(f"/api/v1/chat/sessions/{said['session_id']}/feedback")).json() == {"feedback": []}


@pytest.mark.parametrize(
    ("body", "param"),
    [({"rating": "sideways"}, "rating"), ({"correction": "  "}, "correction"), ({"thumb": "up"}, "thumb")],
)
async def test_nonsense_is_refused_by_name(client: httpx2.AsyncClient, body: dict[str, str], param: str) -> None:
    said = await say(client)
    answer = await client.put(f"/api/v1/chat/feedback/{said['reply_id']}", json=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["param"] == param


async def test_somebody_elses_reply_cannot_be_rated_nor_its_session_exported(site: Site) -> None:
    ada, eve = await site.key(), await site.key()
    async with site.client(authorization=f"Bearer {ada}") as client:
        said = await say(client)
    async with site.client(authorization=f"Bearer {eve}") as client:
        assert (await client.put(f"/api/v1/chat/feedback/{said['reply_id']}", json={"rating": "up"})).status_code == 404
        for rest in ("feedback", "export"):
            assert (await client.get(f"/api/v1/chat/sessions/{said['session_id']}/{rest}")).status_code == 404
        assert (await client.get("/api/v1/chat/sessions?q=Hello")).json()["sessions"] == []


async def test_sessions_are_found_by_title_and_by_what_was_said(client: httpx2.AsyncClient) -> None:
    zebra, percent = await say(client, "What is a ZEBRA?"), await say(client, "How much is 100% of it?")

    async def found(text: str) -> list[str]:
        answer = await client.get("/api/v1/chat/sessions", params={"q": text})
        return [each["id"] for each in answer.json()["sessions"]]

    assert await found("zebra") == [zebra["session_id"]]
    assert await found("100%") == [percent["session_id"]]
    assert await found("1%0") == []
    assert await found("nowhere") == []


async def test_a_session_is_exported_as_json_and_markdown(client: httpx2.AsyncClient) -> None:
    said = await say(client, "What is a zebra?")
    await client.put(f"/api/v1/chat/feedback/{said['reply_id']}", json={"rating": "up"})
    path = f"/api/v1/chat/sessions/{said['session_id']}/export"
    whole = await client.get(path)
    assert whole.headers["content-disposition"] == 'attachment; filename="what-is-a-zebra.json"'
    document = whole.json()
    assert [turn["role"] for turn in document["turns"]] == ["user", "assistant"]
    assert document["turns"][1]["feedback"] == {"rating": "up", "correction": None}
    assert "owner" not in document["session"]
    readable = await client.get(path, params={"format": "markdown"})
    assert readable.headers["content-type"].startswith("text/markdown")
    assert "## You\n\nWhat is a zebra?" in readable.text
    assert (await client.get(path, params={"format": "pdf"})).status_code == 422
