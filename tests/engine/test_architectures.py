"""Greedy text equals `generate()` of the untouched model, token for token, however the engine gets there."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from mini_claude.engine.engine_core import EngineCore
from mini_claude.types import GenerationRequest

NUM_TOKENS = 20
ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "olmo2", "phi3", "mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt2", "gpt_neox",
)  # fmt: skip

BuildModel = Callable[[str], PreTrainedModel]
BuildCore = Callable[..., EngineCore]
RunAll = Callable[[EngineCore, list[GenerationRequest]], dict[str, list[int]]]
GreedyRequest = Callable[..., GenerationRequest]


def generated(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@pytest.fixture(params=ARCHITECTURES, scope="module")
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["rows", "pool"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(architecture: str, build_model: BuildModel, prompts: list[list[int]]) -> list[list[int]]:
    model = build_model(architecture)
    return [generated(model, prompt) for prompt in prompts]


@pytest.fixture
def requests(prompts: list[list[int]], greedy_request: GreedyRequest) -> list[GenerationRequest]:
    return [greedy_request(str(number), prompt, NUM_TOKENS) for number, prompt in enumerate(prompts)]


def test_the_reference_text_is_varied(expected: list[list[int]]) -> None:
    assert len({token for tokens in expected for token in tokens}) > 10


def test_alone(
    architecture: str,
    build_core: BuildCore,
    run_all: RunAll,
    requests: list[GenerationRequest],
    expected: list[list[int]],
) -> None:
    core = build_core(architecture)
    assert [run_all(core, [request])[request.request_id] for request in requests] == expected


def test_in_a_mixed_batch_with_late_arrivals_and_chunked_prefill(
    architecture: str,
    build_core: BuildCore,
    run_all: RunAll,
    requests: list[GenerationRequest],
    expected: list[list[int]],
) -> None:
    core = build_core(architecture, max_num_batched_tokens=8, max_num_seqs=4)
    replies = run_all(core, requests)
    assert [replies[request.request_id] for request in requests] == expected


def test_in_a_batch_that_outgrows_its_rows_and_leaves_gaps(
    architecture: str,
    build_model: BuildModel,
    build_core: BuildCore,
    run_all: RunAll,
    greedy_request: GreedyRequest,
    prompts: list[list[int]],
    expected: list[list[int]],
) -> None:
    long_prompt = prompts[0] + prompts[3]  # 57 tokens, and rows of the smallest kind hold 64
    lengths = (NUM_TOKENS, 2, NUM_TOKENS, 5, NUM_TOKENS, NUM_TOKENS)
    requests = [greedy_request(str(i), prompts[i], length) for i, length in enumerate(lengths)]
    replies = run_all(build_core(architecture), [*requests, greedy_request("long", long_prompt, NUM_TOKENS)])
    assert replies.pop("long") == generated(build_model(architecture), long_prompt)
    assert list(replies.values()) == [tokens[:length] for tokens, length in zip(expected, lengths, strict=True)]


def test_after_prefix_reuse(
    architecture: str,
    build_core: BuildCore,
    run_all: RunAll,
    greedy_request: GreedyRequest,
    requests: list[GenerationRequest],
    expected: list[list[int]],
) -> None:
    core = build_core(architecture)
    prompt = list(requests[0].prompt_token_ids)
    run_all(core, [greedy_request("first", prompt[:30], 2)])
    assert run_all(core, [requests[0]])["0"] == expected[0]
    assert core.stats().cached_tokens_total >= 29
    # The next turn: the whole conversation so far, and once more the first reply's own continuation.
    assert run_all(core, [greedy_request("next", prompt + expected[0][:5], NUM_TOKENS - 5)])["next"] == expected[0][5:]
    assert core.stats().cached_tokens_total >= 29 + 44


def test_after_preemption(
    architecture: str,
    build_core: BuildCore,
    run_all: RunAll,
    requests: list[GenerationRequest],
    expected: list[list[int]],
) -> None:
    core = build_core(architecture, kv_cache_tokens=96)
    replies = run_all(core, requests)
    assert core.stats().preemptions_total > 0
    assert [replies[request.request_id] for request in requests] == expected
