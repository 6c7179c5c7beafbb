"""Decoding with padded shapes: padding changes nobody's logits, and is written where nobody looks."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from mini_claude.engine import decode_step
from mini_claude.engine.cuda_graphs import Shape
from mini_claude.engine.decode_step import DecodeStep
from mini_claude.engine.kv_cache import CacheEntry
from mini_claude.engine.model_preparation import prepare_model
from mini_claude.engine.model_runner import Part, Runner
from mini_claude.engine.pool_runner import PoolRunner
from mini_claude.engine.row_runner import RowRunner
from mini_claude.types import LoadOptions

BuildModel = Callable[[str], PreTrainedModel]
OPTIONS = LoadOptions(kv_cache_tokens=2048)


def prepared(model: PreTrainedModel, runner: Runner) -> Runner:
    prepare_model(model, runner)
    return runner


@pytest.fixture(params=["llama", "qwen3", "gemma3_text", "gpt2"])
def runners(request: pytest.FixtureRequest, build_model: BuildModel) -> tuple[Runner, Runner]:
    """The ordinary one and the one with padded shapes."""
    by_rows, by_pool = build_model(request.param), build_model(request.param)
    return prepared(by_rows, RowRunner(by_rows)), prepared(by_pool, PoolRunner(by_pool, OPTIONS))


def logits_of(runner: Runner, prompts: list[list[int]], num_steps: int) -> torch.Tensor:
    """[steps, prompts, vocabulary]: the last prompt token, then a fixed token a step."""
    entries = [CacheEntry(list(prompt)) for prompt in prompts]
    outputs = [runner.read([Part(entry, 0, list(entry.token_ids), is_wanted=True) for entry in entries]).clone()]
    for number in range(num_steps):
        for entry in entries:
            entry.num_computed = len(entry.token_ids)
            entry.token_ids.append(40 + number)
        parts = [Part(entry, entry.num_computed, entry.token_ids[-1:], is_wanted=True) for entry in entries]
        outputs.append(runner.read(parts).clone())
    return torch.stack(outputs)


@pytest.mark.parametrize("num_sequences", [1, 3, 6])
def test_logits_are_those_of_the_ordinary_step(
    runners: tuple[Runner, Runner], prompts: list[list[int]], num_sequences: int
) -> None:
    expected, actual = (logits_of(runner, prompts[:num_sequences], 5) for runner in runners)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_text_may_grow_past_the_bound_of_a_shape(
    build_model: BuildModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: set[int] = set()
    forward = DecodeStep._forward

    def watched(step: DecodeStep, shape: Shape) -> torch.Tensor:
        shapes.add(shape.longest)
        return forward(step, shape)

    monkeypatch.setattr(decode_step, "_SHORTEST", 16)
    monkeypatch.setattr(DecodeStep, "_forward", watched)
    by_rows, by_pool = build_model("llama"), build_model("llama")
    expected = logits_of(prepared(by_rows, RowRunner(by_rows)), prompts[3:4], 20)
    runner = prepared(by_pool, PoolRunner(by_pool, OPTIONS))
    shapes.clear()
    torch.testing.assert_close(logits_of(runner, prompts[3:4], 20), expected, rtol=1e-4, atol=1e-4)
    assert shapes == {32, 64}  # 17 tokens and 20 more


@pytest.mark.parametrize(
    ("num_sequences", "size"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (16, 16), (17, 32), (33, 48)]
)
def test_sizes_are_few(num_sequences: int, size: int) -> None:
    assert decode_step._padded(num_sequences) == size
