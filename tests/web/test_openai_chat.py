"""/v1/chat/completions, judged by the unmodified openai SDK and, where it forgives, by the bytes."""

import json
from typing import Any

import httpx2
import openai
import pytest

from .conftest import Site
from .echo_runtime import EchoRuntime

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
MODEL = "smollm2-135m"


async def test_an_answer_has_the_shape_that_the_sdk_expects(site: Site) -> None:
    async with site.openai() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "hello")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens == 8  # user marker, 5 bytes, end of turn, assistant marker


async def test_a_missing_model_and_the_alias_mean_the_default_model(client: httpx2.AsyncClient) -> None:
    for body in ({"messages": HELLO}, {"messages": HELLO, "model": None}, {"messages": HELLO, "model": "default"}):
        assert (await client.post("/v1/chat/completions", json=body)).json()["model"] == MODEL


async def test_length_is_said_when_max_tokens_ends_the_answer(site: Site) -> None:
    async with site.openai() as sdk:
        old = await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3)
        new = await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=3)
    for answer in (old, new):
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3


async def test_the_same_limit_twice_is_fine_and_two_limits_are_refused(client: httpx2.AsyncClient) -> None:
    same = {"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 3}
    assert (await client.post("/v1/chat/completions", json=same)).status_code == 200
    answer = await client.post("/v1/chat/completions", json={**same, "max_tokens": 4})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_completion_tokens"


async def test_a_stream_adds_up_to_the_answer(site: Site) -> None:
    async with site.openai() as sdk:
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert len({chunk.created for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


async def _raw_stream(client: httpx2.AsyncClient, **body: Any) -> list[Any]:
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO, "stream": True, **body})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    frames = answer.text.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    data = [frame.removeprefix("data: ") for frame in frames]
    return [*(json.loads(item) for item in data[:-1]), data[-1]]


async def test_without_the_option_no_chunk_has_usage(client: httpx2.AsyncClient) -> None:
    for options in ({}, {"stream_options": None}, {"stream_options": {"include_usage": False}}):
        *chunks, done = await _raw_stream(client, **options)
        assert done == "[DONE]"
        assert all("usage" not in chunk for chunk in chunks)


async def test_include_usage_adds_one_chunk_and_null_everywhere_else(client: httpx2.AsyncClient) -> None:
    *chunks, usage, done = await _raw_stream(client, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 8
    assert usage["id"] == chunks[0]["id"]


async def test_finish_reason_is_null_before_the_last_delta(client: httpx2.AsyncClient) -> None:
    *chunks, _ = await _raw_stream(client)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}


async def test_streams_are_ascii_so_that_no_line_splitter_cuts_them(client: httpx2.AsyncClient) -> None:
    text = "a\u2028b\u0085c\U0001f600"
    answer = await client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], "stream": True}
    )
    assert answer.content.isascii()
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line[6:7] == "{"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


async def test_explicit_nulls_are_accepted_for_every_parameter_that_the_sdk_has(client: httpx2.AsyncClient) -> None:
    names = openai.types.chat.completion_create_params.CompletionCreateParamsBase.__annotations__
    nulls = dict.fromkeys(name for name in [*names, "stream"] if name != "messages")
    assert len(nulls) > 30
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO, **nulls})
    assert answer.status_code == 200, answer.text


async def test_several_choices_run_side_by_side_and_count_the_prompt_once(site: Site) -> None:
    async with site.openai() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=HELLO, n=4, seed=7)
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, n=3, stream=True)
        texts = ["", "", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [request.params.seed for request in site.runtime.requests[:4]] == [7, 8, 9, 10]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 32)
    assert texts == ["hello"] * 3


async def test_logprobs_cover_every_token(site: Site) -> None:
    async with site.openai() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2)
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, stream=True)
        streamed = [chunk.choices[0].logprobs async for chunk in stream]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    assert logprobs.content[1].token == "h"
    assert logprobs.content[1].bytes == list(b"h")
    assert logprobs.content[1].top_logprobs[0].logprob == 0.0
    tokens = [token for part in streamed if part and part.content for token in part.content]
    assert [token.token for token in tokens] == [token.token for token in logprobs.content]
    assert all(token.top_logprobs == [] for token in tokens)


async def test_sampling_parameters_reach_the_engine(site: Site) -> None:
    async with site.openai() as sdk:
        await sdk.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            temperature=0.5,
            top_p=0.9,
            presence_penalty=1,
            frequency_penalty=-1,
            logit_bias={"5": -100, "6": 2},
            stop=["x", "y"],
            seed=3,
            user="somebody",
            metadata={"a": "b"},
        )
        await sdk.chat.completions.create(model=MODEL, messages=HELLO, stop="l")
    first, second = (request.params for request in site.runtime.requests)
    assert (first.temperature, first.top_p, first.seed) == (0.5, 0.9, 3)
    assert (first.presence_penalty, first.frequency_penalty) == (1, -1)
    assert first.logit_bias == {5: -100, 6: 2}
    assert first.stop == ("x", "y")
    assert (second.stop, second.max_tokens, second.temperature, second.logprobs) == (("l",), None, 1.0, None)


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(site: Site) -> None:
    async with site.openai() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stop="lo")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("hel", "stop")


async def test_developer_is_system_and_text_parts_are_put_together(site: Site) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages: list[Any] = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    async with site.openai() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=messages)
        # what an SDK read is what it sends back
        again = [*messages, answer.choices[0].message.model_dump(), {"role": "user", "content": "more"}]
        await sdk.chat.completions.create(model=MODEL, messages=again)
    first, second = (request.messages for request in site.runtime.requests if hasattr(request, "messages"))
    assert [(message.role, message.content) for message in first] == [("system", "be brief"), ("user", "one two")]
    assert [message.role for message in second] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"store": True}, "store"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role"),
        ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages.0.name"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content",
        ),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(
    client: httpx2.AsyncClient, change: dict[str, Any], param: str
) -> None:
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO, **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("unsupported_parameter", param, "invalid_request_error")
    assert param.split(".")[-1] in error["message"] or "image_url" in error["message"]


async def test_values_that_mean_not_used_are_accepted(client: httpx2.AsyncClient) -> None:
    neutral = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "store": False,
        "n": 1,
        "service_tier": "auto",
        "modalities": ["text"],
        "parallel_tool_calls": True,
    }
    assert (await client.post("/v1/chat/completions", json={"messages": HELLO, **neutral})).status_code == 200
    # equal in Python, but a number is not a boolean
    assert (await client.post("/v1/chat/completions", json={"messages": HELLO, "store": 0})).status_code == 400


async def test_an_unknown_parameter_is_named(site: Site) -> None:
    async with site.openai() as sdk:
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"temprature": 1})
    assert (raised.value.code, raised.value.param) == ("unknown_parameter", "temprature")
    assert "temprature" in raised.value.message


async def test_an_unknown_model_is_404(site: Site) -> None:
    async with site.openai() as sdk:
        with pytest.raises(openai.NotFoundError) as raised:
            await sdk.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert raised.value.request_id is not None


async def test_an_overflow_names_the_numbers_before_the_stream_begins(site: Site) -> None:
    async with site.openai() as sdk:
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5000, stream=True)
    assert raised.value.code == "context_length_exceeded"
    assert "2048" in raised.value.message
    assert "5008" in raised.value.message


async def test_a_full_queue_is_503_with_retry_after(open_site: Any) -> None:
    runtime = EchoRuntime(max_num_seqs=1, max_waiting=0)
    site: Site = await open_site(runtime)
    runtime.pause_after = 0
    async with site.openai() as sdk:
        with pytest.raises(openai.InternalServerError) as raised:
            await sdk.chat.completions.create(model=MODEL, messages=HELLO, n=2)
    assert raised.value.status_code == 503
    assert raised.value.code == "overloaded"
    assert int(raised.value.response.headers["retry-after"]) >= 1
    assert len(runtime.closed) == 1  # the choice that was accepted does not go on without the other one


async def test_an_error_in_mid_stream_is_an_error_object_and_the_end(open_site: Any) -> None:
    runtime = EchoRuntime()
    runtime.die_after = 3
    site: Site = await open_site(runtime)
    async with site.client() as client:
        *_, last = await _raw_stream(client, stream_options={"include_usage": True})
    error = json.loads(last)["error"]
    assert error["code"] == "engine_died"
    assert set(error) == {"message", "type", "param", "code"}
    async with site.openai() as sdk:
        stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="engine process ended"):
            async for _ in stream:
                pass


async def test_an_error_in_a_whole_answer_has_its_status(open_site: Any) -> None:
    runtime = EchoRuntime()
    runtime.die_after = 3
    site: Site = await open_site(runtime)
    async with site.openai() as sdk:
        with pytest.raises(openai.InternalServerError) as raised:
            await sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert (raised.value.status_code, raised.value.code) == (503, "engine_died")


async def test_a_wrong_key_is_401_in_openais_shape(site: Site) -> None:
    key = await site.key()
    async with site.openai("mc-" + "x" * 43) as sdk:
        with pytest.raises(openai.AuthenticationError) as raised:
            await sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert raised.value.code == "invalid_api_key"
    async with site.openai(key) as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "hello"
