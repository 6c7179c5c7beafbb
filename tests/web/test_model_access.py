"""Which models users may use, load and train: the same over REST, OpenAI's API, WebSockets and the page."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import httpx2
import pytest
from sqlalchemy import text
from websockets.asyncio.client import connect

from mini_claude.data.adapters import AdapterRepository
from mini_claude.web.page.chat_view import ChatView
from mini_claude.web.page.compare import CompareTab
from mini_claude.web.page.models import ModelsTab
from mini_claude.web.page_line import OWNER_HEADER, ROLE_HEADER

from .conftest import OpenSite, Site, served

OPEN, SHUT, ADAPTER = "smollm2-135m", "dialogpt-medium", "dialogpt-medium:bot"
WORDS = [{"role": "user", "content": "Hello"}]
# Everything that names a model to have it work for somebody, with its place in the request.
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "native": ("/api/v1/chat/completions", "model", {"messages": WORDS}),
    "native stream": ("/api/v1/chat/completions", "model", {"messages": WORDS, "stream": True}),
    "session": ("/api/v1/chat/completions", "model", {"messages": WORDS, "session_id": "new"}),
    "openai": ("/v1/chat/completions", "model", {"messages": WORDS}),
    "openai stream": ("/v1/chat/completions", "model", {"messages": WORDS, "stream": True, "n": 2}),
    "completions": ("/v1/completions", "model", {"prompt": "Hello"}),
    "xray": ("/api/v1/xray", "model", {"messages": WORDS, "max_tokens": 4}),
    "training": ("/api/v1/training/jobs", "model_name", {"dataset_path": "rows", "adapter_name": "other"}),
    "preview": ("/api/v1/datasets/rows/preview", "model", {}),
}
BASES_ONLY = ("training", "preview")


@dataclass
class Guarded:
    """A site with rules, an adapter on the model that users may not use, and two people with data."""

    site: Site
    admin: httpx2.AsyncClient
    user: httpx2.AsyncClient


@pytest.fixture
async def guarded(request: pytest.FixtureRequest, open_site: OpenSite) -> AsyncIterator[Guarded]:
    rules = getattr(request, "param", {"users_may_use": "smollm2-*"})
    site = await open_site(database_url=None, **rules)
    (site.services.settings.adapters_dir / "folder").mkdir(parents=True)
    AdapterRepository(site.services.database).add("a" * 32, SHUT, "bot", "folder", {}, None)
    root, ada = await site.token("root", "admin"), await site.token("ada")
    async with (
        site.client(authorization=f"Bearer {root}") as admin,
        site.client(authorization=f"Bearer {ada}") as user,
    ):
        yield Guarded(site, admin, user)


async def upload(client: httpx2.AsyncClient, name: str = "rows") -> None:
    answer = await client.post(
        "/api/v1/datasets", files={"file": (f"{name}.jsonl", b'["Hi", "Yo"]\n')}, data={"name": name}
    )
    assert answer.is_success, answer.text


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_model_that_is_not_for_users_is_403_for_them_wherever_it_is_named(guarded: Guarded, kind: str) -> None:
    path, field, body = REQUESTS[kind]
    if kind in BASES_ONLY:
        await upload(guarded.user)
    for model in (SHUT,) if kind in BASES_ONLY else (SHUT, ADAPTER, f"{ADAPTER}@1"):
        answer = await guarded.user.post(path, json={**body, field: model})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (403, "model_forbidden", field), answer.text
        assert SHUT in error["message"]
    assert guarded.site.runtime.loaded == {}
    assert guarded.site.runtime.requests == []
    if kind not in BASES_ONLY:  # those start a process with the model
        assert (await guarded.admin.post(path, json={**body, field: SHUT})).status_code == 200
        assert (await guarded.user.post(path, json={**body, field: OPEN})).status_code == 200


async def test_lists_leave_out_what_one_may_not_use_with_its_adapters(guarded: Guarded) -> None:
    for client, there in ((guarded.admin, True), (guarded.user, False)):
        native = [model["name"] for model in (await client.get("/api/v1/models")).json()["models"]]
        openai = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        adapters = [each["model"] for each in (await client.get("/api/v1/models/adapters")).json()["adapters"]]
        assert OPEN in native
        assert native == openai
        assert (SHUT in native, f"{ADAPTER}@1" in native, SHUT in adapters) == (there, there, there)
        for path in (f"/api/v1/models/{SHUT}", f"/v1/models/{ADAPTER}", f"/api/v1/models/adapters/{ADAPTER}"):
            assert (await client.get(path)).status_code == (200 if there else 403), path


async def test_the_owner_of_an_adapter_loses_it_with_its_base(guarded: Guarded) -> None:
    owner = (await guarded.user.get("/api/v1/me")).json()["user_id"]
    (guarded.site.services.settings.adapters_dir / "own").mkdir()
    AdapterRepository(guarded.site.services.database).add(owner, SHUT, "mine", "own", {}, None)
    for method, end in (("POST", "/export"), ("POST", "/verify"), ("DELETE", "")):
        answer = await guarded.user.request(method, f"/api/v1/models/adapters/{SHUT}:mine@1{end}", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_forbidden"), (end, answer.text)
    files = {"config": b"{}", "weights": b""}
    answer = await guarded.user.post("/api/v1/models/adapters", files=files, data={"name": "new", "model": SHUT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_forbidden"), answer.text


async def test_a_session_does_not_go_on_with_a_model_that_is_not_for_users(guarded: Guarded) -> None:
    begun = (await guarded.user.post("/api/v1/chat/completions", json={"session_id": "new", "messages": WORDS})).json()
    with guarded.site.services.database.write() as session:  # as if the rule had come later
        session.execute(text("UPDATE sessions SET model = :model"), {"model": SHUT})
    again = {"session_id": begun["session_id"], "messages": WORDS}
    assert (await guarded.user.post("/api/v1/chat/completions", json=again)).status_code == 403
    assert (await guarded.user.get(f"/api/v1/chat/sessions/{begun['session_id']}")).status_code == 200
    assert (await guarded.user.post("/api/v1/chat/completions", json={**again, "model": OPEN})).status_code == 200


async def test_a_default_that_is_not_for_users_is_403_and_says_what_to_do(guarded: Guarded) -> None:
    guarded.site.place(SHUT)
    assert (await guarded.admin.put("/api/v1/default-model", json={"model": ADAPTER})).status_code == 200
    for body in ({"messages": WORDS}, {"messages": WORDS, "model": "default"}):
        for path in ("/v1/chat/completions", "/api/v1/chat/completions"):
            answer = await guarded.user.post(path, json=body)
            assert (answer.status_code, "GET /v1/models" in answer.text) == (403, True), answer.text
            assert (await guarded.admin.post(path, json=body)).status_code == 200


async def test_websockets_follow_the_same_rule(guarded: Guarded) -> None:
    async with served(guarded.site) as address:
        for client, kind in ((guarded.user, "error"), (guarded.admin, "start")):
            headers = {"authorization": client.headers["authorization"]}
            async with connect(f"ws://{address}/ws/chat", additional_headers=headers) as socket:
                assert json.loads(await socket.recv())["type"] == "ready"
                await socket.send(json.dumps({"type": "chat", "message": "Hello", "model": SHUT}))
                frame = json.loads(await socket.recv())
                assert (frame["type"], frame.get("code", "model_forbidden")) == (kind, "model_forbidden")


async def test_the_page_offers_only_what_may_be_used(guarded: Guarded) -> None:
    owner = (await guarded.user.get("/api/v1/me")).json()["user_id"]
    guarded.site.place(SHUT)
    await guarded.site.services.models.set_default(SHUT)
    with gr.Blocks():
        compare, models = CompareTab(guarded.site.services), ModelsTab(guarded.site.services)
        view = ChatView(guarded.site.services)
    for role, there in (("user", False), ("admin", True)):
        visit = gr.Request(headers={OWNER_HEADER: owner, ROLE_HEADER: role})
        first, _ = await compare._names(visit, None, None)
        assert (SHUT in [name for name, _ in first.choices], first.value == SHUT) == (there, there)
        assert first.value in (OPEN, SHUT)
        cards = (await models._refresh(visit, "", None))[models.models.list]
        assert (SHUT in [card["name"] for card in cards]) is there
        caller = await guarded.site.services.credentials.caller(
            (guarded.admin if there else guarded.user).headers["authorization"].partition(" ")[2]
        )
        chosen = (await view.look(caller, None, "")).update[view.panel.model]
        assert (chosen.value == SHUT) is there


@pytest.mark.parametrize("guarded", [{"users_may_load": "dialogpt-*"}], indirect=True)
async def test_what_users_may_not_load_answers_them_while_an_admin_has_loaded_it(guarded: Guarded) -> None:
    for kind in ("native", "session", "openai", "completions", "xray"):
        path, field, body = REQUESTS[kind]
        named = {**body, field: OPEN}
        refused = await guarded.user.post(path, json=named)
        assert (refused.status_code, "not in memory" in refused.text) == (403, True), (kind, refused.text)
        assert guarded.site.runtime.loaded == {}
        assert (await guarded.user.post(path, json={**body, field: SHUT})).status_code == 200
        assert (await guarded.admin.post(path, json=named)).status_code == 200
        assert (await guarded.user.post(path, json=named)).status_code == 200
        for model in (OPEN, SHUT):
            await guarded.admin.post("/api/v1/models/unload", json={"model": model})


@pytest.mark.parametrize("guarded", [{"users_may_train": "dialogpt-*"}], indirect=True)
async def test_what_users_may_not_train_they_may_still_use(guarded: Guarded) -> None:
    for client, name in ((guarded.user, "rows"), (guarded.admin, "others")):
        await upload(client, name)
    job = {"dataset_path": "rows", "model_name": OPEN}
    refused = await guarded.user.post("/api/v1/training/jobs", json=job)
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "model_name"), refused.text
    assert (await guarded.user.post("/v1/chat/completions", json={"model": OPEN, "messages": WORDS})).status_code == 200
    made = await guarded.user.post("/api/v1/training/jobs", json={**job, "model_name": SHUT, "adapter_name": "my-bot"})
    assert made.status_code == 201, made.text
    assert (
        await guarded.admin.post("/api/v1/training/jobs", json={**job, "dataset_path": "others"})
    ).status_code == 201


async def test_a_job_does_not_go_on_when_its_model_may_not_be_trained_any_more(guarded: Guarded) -> None:
    await upload(guarded.user)
    job = {"dataset_path": "rows", "model_name": OPEN}
    job_id = (await guarded.user.post("/api/v1/training/jobs", json=job)).json()["id"]
    await guarded.user.delete(f"/api/v1/training/jobs/{job_id}")
    guarded.site.services.models._access._train = ()
    assert (await guarded.user.post(f"/api/v1/training/jobs/{job_id}/resume")).status_code == 403
