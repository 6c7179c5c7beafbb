"""Feedback, search and export of sessions over REST."""

from typing import Any

import httpx2
import pytest

from .conftest import Site

pytestmark = pytest.mark.both_databases


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
    umlaut = await say(client, "Ist die ÄRA zu Ende?")
    assert await found("ära") == [umlaut["session_id"]]
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


async def rated(client: httpx2.AsyncClient, text: str, **feedback: str) -> None:
    said = await say(client, text)
    answer = await client.put(f"/api/v1/chat/feedback/{said['reply_id']}", json=feedback)
    assert answer.status_code == 200, answer.text


async def test_rated_replies_and_corrections_become_training_data(site: Site) -> None:
    async with site.client() as client:
        await rated(client, "Good one", rating="up")
        await rated(client, "Bad one", rating="down")
        await rated(client, "Wrong one", rating="down", correction="The right one")
        made = await client.post("/api/v1/datasets/from-feedback", json={"name": "mine", "source": "rated"})
        assert made.status_code == 201, made.text
        assert (made.json()["format"], made.json()["num_rows"], made.json()["num_broken"]) == ("messages", 2, 0)
        pairs = await client.post("/api/v1/datasets/from-feedback", json={"name": "pairs", "source": "preferences"})
        assert (pairs.json()["format"], pairs.json()["num_rows"]) == ("preference", 1)
        assert (made.json()["num_left_out"], pairs.json()["num_left_out"]) == (0, 0)


async def test_there_must_be_something_to_make_a_dataset_of(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/datasets/from-feedback", json={"name": "mine", "source": "rated"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_feedback")
    assert (await client.get("/api/v1/datasets")).json() == {"datasets": []}


async def test_a_preference_is_kept_listed_made_a_dataset_and_forgotten(client: httpx2.AsyncClient) -> None:
    body = {
        "messages": [{"role": "user", "content": "Who?"}],
        "chosen": {"model": "a:b@1", "text": "Me."},
        "rejected": {"model": "a", "text": "You."},
    }
    kept = await client.post("/api/v1/preferences", json=body)
    assert kept.status_code == 201, kept.text
    listed = (await client.get("/api/v1/preferences")).json()["preferences"]
    assert [each["chosen"]["text"] for each in listed] == ["Me."]
    made = await client.post("/api/v1/datasets/from-feedback", json={"name": "pairs", "source": "preferences"})
    assert made.json()["num_rows"] == 1
    assert (await client.delete(f"/api/v1/preferences/{kept.json()['id']}")).status_code == 204
    assert (await client.get("/api/v1/preferences")).json() == {"preferences": []}
    same = {**body, "rejected": {"model": "a", "text": "Me."}}
    assert (await client.post("/api/v1/preferences", json=same)).status_code == 400


async def test_the_default_model_is_chosen_and_rolled_back(site: Site) -> None:
    async with site.client() as client:
        assert (await client.get("/api/v1/default-model")).json() == {"model": "smollm2-135m", "history": []}
        absent = await client.put("/api/v1/default-model", json={"model": "dialogpt-small"})
        assert (absent.status_code, absent.json()["error"]["code"]) == (409, "model_not_downloaded")
        site.place("dialogpt-small")
        chosen = await client.put("/api/v1/default-model", json={"model": "dialogpt-small"})
        assert chosen.json()["model"] == "dialogpt-small"
        said = await client.post("/api/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}]})
        assert said.json()["model"] == "dialogpt-small"
        back = await client.put("/api/v1/default-model", json={"model": "smollm2-135m"})
        assert [each["reference"] for each in back.json()["history"]] == ["smollm2-135m", "dialogpt-small"]
        assert (await client.put("/api/v1/default-model", json={"model": "nobody"})).status_code == 404
