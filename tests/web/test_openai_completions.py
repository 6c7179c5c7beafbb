"""/v1/completions and /v1/models, judged by the unmodified openai SDK."""

import json
from typing import Any

import httpx2
import openai
import pytest

from .conftest import Site

MODEL = "smollm2-135m"


async def test_a_text_is_continued_without_a_template(site: Site) -> None:
    async with site.openai() as sdk:
        answer = await sdk.completions.create(model=MODEL, prompt="hello")
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("hello", "stop", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 5)


async def test_without_max_tokens_it_ends_after_sixteen(site: Site) -> None:
    async with site.openai() as sdk:
        answer = await sdk.completions.create(model=MODEL, prompt="x" * 40)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


async def test_prompts_may_be_texts_or_token_ids(site: Site) -> None:
    prompts: list[Any] = ["one", ["one", "two"], [111, 110], [[111], [110]]]
    expected = [["one"], ["one", "two"], ["on"], ["o", "n"]]
    async with site.openai() as sdk:
        for prompt, texts in zip(prompts, expected, strict=True):
            answer = await sdk.completions.create(model=MODEL, prompt=prompt)
            assert [choice.text for choice in answer.choices] == texts
            assert [choice.index for choice in answer.choices] == list(range(len(texts)))


async def test_each_prompt_counts_once_however_many_choices_it_has(site: Site) -> None:
    async with site.openai() as sdk:
        answer = await sdk.completions.create(model=MODEL, prompt=["abc", "de"], n=2)
    assert [choice.text for choice in answer.choices] == ["abc", "abc", "de", "de"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 10)


async def test_logprobs_have_their_own_shape(site: Site) -> None:
    async with site.openai() as sdk:
        answer = await sdk.completions.create(model=MODEL, prompt="héy", logprobs=1)
        stream = await sdk.completions.create(model=MODEL, prompt="hey", logprobs=0, stream=True)
        offsets = [part.choices[0].logprobs.text_offset async for part in stream if part.choices[0].logprobs]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.tokens[0] == "h"
    assert len(logprobs.tokens) == 4  # two bytes of é
    assert logprobs.token_logprobs == [0.0] * 4
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"h": 0.0}
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[:2] == [0, 1]
    assert offsets == [[0], [1], [2]]


async def test_a_stream_has_text_usage_and_a_true_reason(site: Site) -> None:
    async with site.openai() as sdk:
        stream = await sdk.completions.create(
            model=MODEL, prompt="hello", max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "hell"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


@pytest.mark.parametrize(("name", "value"), [("echo", True), ("suffix", "end"), ("best_of", 2)])
async def test_what_is_not_supported_is_refused_by_name(client: httpx2.AsyncClient, name: str, value: object) -> None:
    answer = await client.post("/v1/completions", json={"prompt": "x", name: value})
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("unsupported_parameter", name)


async def test_explicit_nulls_and_neutral_values_are_accepted(client: httpx2.AsyncClient) -> None:
    names = openai.types.completion_create_params.CompletionCreateParamsBase.__annotations__
    nulls = dict.fromkeys(name for name in names if name != "prompt")
    for extra in (nulls, {"echo": False, "suffix": "", "best_of": 1, "stream": None}):
        answer = await client.post("/v1/completions", json={"prompt": "x", **extra})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "prompt", [None, [], [[]], 3, {"a": 1}, [1, "x"], [True], [-1], [2**40], ["x"] * 5, ["a", ["b"]], "\ud800"]
)
async def test_a_prompt_of_another_kind_is_refused(client: httpx2.AsyncClient, prompt: object) -> None:
    answer = await client.post(
        "/v1/completions",
        content=json.dumps({"prompt": prompt}),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"


async def test_models_are_listed_and_found(site: Site) -> None:
    async with site.openai() as sdk:
        names = [model.id async for model in sdk.models.list()]
        model = await sdk.models.retrieve(MODEL)
        for missing in ("gpt-4o", "owner/name", "../etc/passwd"):
            with pytest.raises(openai.NotFoundError) as raised:
                await sdk.models.retrieve(missing)
            assert raised.value.code in ("model_not_found", "unknown_url")
    assert MODEL in names
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "mini-claude")
