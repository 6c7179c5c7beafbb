"""POST /api/v1/xray over the echo engine: what is shown, what is refused, and whose replies one may see."""

from typing import Any

import httpx2
import pytest

from .conftest import Site

PATH = "/api/v1/xray"
HELLO = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


async def post(client: httpx2.AsyncClient, **body: Any) -> Any:
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_prompt_shows_its_control_tokens(client: httpx2.AsyncClient) -> None:
    xray = await post(client, **HELLO)
    shown = [(token["token"], token["is_control"]) for token in xray["prompt"]["tokens"]]
    assert shown == [
        *[("<|user|>", True), ("H", False), ("i", False), ("<|end|>", True), ("<|assistant|>", True)],
    ]
    assert xray["prompt"]["seconds"].keys() == {"render", "tokenize"}


async def test_every_token_has_its_candidates_steps_and_times(client: httpx2.AsyncClient) -> None:
    xray = await post(client, **HELLO)
    assert len(xray["tokens"]) == 4
    first = xray["tokens"][0]
    assert first["steps"] == ["model"]
    assert first["candidates"] == [{"token_id": 258, "token": "", "probabilities": [1.0]}]
    assert {"queue", "prefill", "sampling", "detokenize"} <= first["seconds"].keys()
    assert xray["mode"] == "generated"
    assert {"render", "tokenize", "decode"} <= xray["seconds"].keys()


async def test_an_answer_goes_on_from_the_tokens_that_were_given(client: httpx2.AsyncClient) -> None:
    xray = await post(client, **HELLO, prefix_token_ids=[72, 111])
    assert [token["token_id"] for token in xray["tokens"]][:2] == [72, 111]
    assert [token["forced"] for token in xray["tokens"]] == [True, True, False, False]
    assert xray["text"].startswith("Ho")


async def test_a_stored_reply_is_read_again(client: httpx2.AsyncClient) -> None:
    said = (await client.post("/api/v1/chat/completions", json={**HELLO, "max_tokens": 64, "session_id": "new"})).json()
    xray = await post(client, reply_id=said["reply_id"])
    assert xray["mode"] == "scored"
    assert xray["text"] == said["response"]
    assert all(token["forced"] for token in xray["tokens"])


async def test_a_reply_of_somebody_else_does_not_exist(site: Site) -> None:
    ada, eve = await site.key(), await site.key()
    async with site.client(authorization=f"Bearer {ada}") as client:
        said = (await client.post("/api/v1/chat/completions", json={**HELLO, "session_id": "new"})).json()
    async with site.client(authorization=f"Bearer {eve}") as client:
        answer = await client.post(PATH, json={"reply_id": said["reply_id"]})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({**HELLO, "reply_id": "a"}, "messages"),
        ({"reply_id": "a", "model": "echo"}, "model"),
        ({**HELLO, "candidates": 21}, "candidates"),
        ({**HELLO, "max_tokens": 513}, "max_tokens"),
        ({**HELLO, "logprobs": 1}, "logprobs"),
        ({**HELLO, "prefix_token_ids": [1, 2, 3, 4]}, "prefix_token_ids"),
        ({**HELLO, "prefix_token_ids": [99_999_999]}, "prefix_token_ids"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(client: httpx2.AsyncClient, body: dict[str, Any], param: str) -> None:
    answer = await client.post(PATH, json=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["param"] == param
