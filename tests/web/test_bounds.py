"""Every bound of every parameter: the last good value passes, the first bad one is a quick 4xx that names it."""

import json
import time
from typing import Any

import httpx2
import pytest

OPENAI = "/v1/chat/completions"
NATIVE = "/api/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
BASES: dict[str, dict[str, Any]] = {
    OPENAI: HELLO,
    NATIVE: HELLO,
    COMPLETIONS: {"prompt": "hello"},
    "/api/v1/models/load": {"model": "smollm2-135m"},
}

Nan, Inf = float("nan"), float("inf")
NO_NUMBER = ["1", True, [], {}, Nan, Inf, -Inf, 10**400]
SAMPLING: dict[str, tuple[list[Any], list[Any]]] = {
    "max_tokens": ([1, 1000], [0, -1, 10**7 + 1, 10**30, 1.5, *NO_NUMBER]),
    "temperature": ([0, 2, 0.0, 1.999], [-0.001, 2.001, 1e308, -1, *NO_NUMBER]),
    "top_p": ([0, 1, 0.5], [-0.001, 1.001, 1e308, *NO_NUMBER]),
    "presence_penalty": ([-2, 2], [-2.001, 2.001, 1e308, *NO_NUMBER]),
    "frequency_penalty": ([-2, 2], [-2.001, 2.001, -1e308, *NO_NUMBER]),
    "seed": ([0, -(2**63), 2**63 - 1], [2**63, -(2**63) - 1, 1.5, *NO_NUMBER]),
    "stop": (
        ["x", ["x"] * 4, ["x" * 64], []],
        ["", ["x"] * 5, ["x" * 65], [""], [1], 1, {"a": "b"}, True, [["x"]], "x" * 10**5],
    ),
    "logit_bias": (
        [{}, {"5": 100}, {"5": -100}, {"5": 1.5}],
        [
            {"5": 100.1},
            {"5": -101},
            {"x": 1},
            {"-1": 1},
            {"1.5": 1},
            {"5": Nan},
            {"5": Inf},
            {"5": "1"},
            {"": 1},
            {"9" * 400: 1},
            {"300": 1},
            [],
            1,
            {str(number): 1 for number in range(1025)},
        ],
    ),
}
OPENAI_ONLY: dict[str, tuple[list[Any], list[Any]]] = {"n": ([1, 4], [0, 5, -1, 10**9, 1.5, *NO_NUMBER])}
TABLES: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {
    OPENAI: {
        **SAMPLING,
        **OPENAI_ONLY,
        "max_completion_tokens": SAMPLING["max_tokens"],
        "top_logprobs": ([], [20, -1, 21]),  # needs logprobs
        "logprobs": ([True, False], [1, "true", 0]),
        "stream": ([False], [1, "true", []]),
        "stream_options": ([], [{}, {"include_usage": True}, {"x": 1}, []]),  # needs stream
        "metadata": (
            [{"k" * 64: "v" * 512}],
            [{"k" * 65: "v"}, {"k": "v" * 513}, {"k": 1}, [], {str(number): "" for number in range(17)}],
        ),
        "user": (["u" * 512], ["u" * 513, 1]),
        "model": (["default"], ["", "m" * 257, 1, []]),
        "messages": (
            [],
            [
                [],
                {},
                "x",
                None,
                [1],
                [None],
                [{}],
                [{"role": "user"}],
                [{"content": "x"}],
                [{"role": "user", "content": None}],
                [{"role": "user", "content": [{"type": "text"}]}],
                [{"role": "user", "content": [1]}],
                [{"role": "user", "content": []}],
                [{"role": "user", "content": "x", "extra": 1}],
            ],
        ),
    },
    NATIVE: {
        **SAMPLING,
        "top_k": ([0, 10**6], [-1, 10**6 + 1, 1.5, *NO_NUMBER]),
        "min_p": ([0, 1], [-0.1, 1.1, *NO_NUMBER]),
        "repetition_penalty": ([0.01, 10], [0, -1, 10.1, *NO_NUMBER]),
        "logprobs": ([0, 20], [-1, 21, 1.5, *NO_NUMBER]),
        "session_id": (["new"], ["", "s" * 129, 1]),
        "model": (["default"], ["", "m" * 257, 1]),
        "messages": ([], [[], {}, None, [{}], [{"role": "tool", "content": "x"}], [{"role": "user", "content": 1}]]),
    },
    COMPLETIONS: {**SAMPLING, **OPENAI_ONLY, "logprobs": ([0, 20], [-1, 21, *NO_NUMBER])},
    "/api/v1/models/load": {
        "dtype": (["auto", "float16"], ["", "float64", 1]),
        "device": (["cpu", "cuda:0", "auto"], ["", "cuda:", "cuda:9999", "meta", "cpu\n", 1]),
        "quantization": (["int8", "nf4"], ["", "int2", 8]),
    },
}


FIELDS = [(path, name) for path, table in TABLES.items() for name in table]


async def post(client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> httpx2.Response:
    return await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


@pytest.mark.parametrize(("path", "name"), FIELDS)
async def test_the_last_good_values_are_honoured(client: httpx2.AsyncClient, path: str, name: str) -> None:
    for value in TABLES[path][name][0]:
        answer = await post(client, path, {**BASES[path], name: value})
        assert answer.status_code == 200, (value, answer.text)


@pytest.mark.parametrize(("path", "name"), FIELDS)
async def test_the_first_bad_values_are_refused_by_name(client: httpx2.AsyncClient, path: str, name: str) -> None:
    await post(client, path, BASES[path])  # what is done only once is not what is timed
    for value in TABLES[path][name][1]:
        started = time.process_time()
        answer = await post(client, path, {**BASES[path], name: value})
        assert time.process_time() - started < 0.1
        assert answer.status_code in ((400,) if path.startswith("/v1/") else (400, 422)), (value, answer.text)
        error = answer.json()["error"]
        assert len(answer.content) < 2000  # the value is not sent back
        assert (error["param"] or "").split(".")[0] == name, (value, error)
        assert name in error["message"], (value, error)
