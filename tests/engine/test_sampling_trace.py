"""What a trace says of a choice is what the sampler drew from."""

from random import Random

import numpy as np
import pytest
import torch

from mini_claude.engine.array_sampler import ArraySampler
from mini_claude.engine.reply_text import ReplyText
from mini_claude.engine.sampler import Sampler
from mini_claude.engine.sequence import ChoiceTrace, SampledToken, Sequence
from mini_claude.models.echo_model import ByteCodec
from mini_claude.types import GenerationRequest, SamplingParams

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.0], np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum()


def sequence_of(params: SamplingParams, prompt: tuple[int, ...] = (0,), seed: int = 1) -> Sequence:
    return Sequence(GenerationRequest("r", prompt, params), 10, ReplyText(ByteCodec(), ()), Random(seed))


def sampled(params: SamplingParams, prompt: tuple[int, ...] = (0,), seed: int = 1) -> SampledToken:
    (token,) = ArraySampler().sample(LOGITS.copy()[None], [sequence_of(params, prompt, seed)])
    assert isinstance(token, SampledToken)
    return token


def trace_of(**params: object) -> ChoiceTrace:
    trace = sampled(SamplingParams(trace=6, **params)).trace  # type: ignore[arg-type]
    assert trace is not None
    return trace


def column(trace: ChoiceTrace, step: str) -> dict[int, float | None]:
    """Probabilities after a step, by token."""
    number = trace.steps.index(step)
    return {token_id: row[number] for token_id, row in zip(trace.token_ids, trace.probabilities, strict=True)}


def test_nobody_who_does_not_ask_gets_one() -> None:
    assert sampled(SamplingParams()).trace is None


def test_neutral_settings_are_no_steps() -> None:
    trace = trace_of()
    assert trace.steps == ("model",)
    assert trace.token_ids == (0, 1, 2, 3, 4, 5)
    assert [row[0] for row in trace.probabilities] == pytest.approx(SOFTMAX.tolist(), rel=1e-5)


def test_steps_come_in_the_order_of_application_and_take_candidates_out() -> None:
    trace = trace_of(temperature=0.5, top_k=3, top_p=0.9, min_p=0.5, repetition_penalty=2.0)
    assert trace.steps == ("model", "repetition_penalty", "temperature", "top_k", "top_p", "min_p")
    penalized = np.where(np.arange(6) == 0, 1.0, LOGITS)
    expected = np.exp(penalized / 0.5) / np.exp(penalized / 0.5).sum()
    assert column(trace, "temperature")[0] == pytest.approx(expected[0], rel=1e-5)
    after_top_k = column(trace, "top_k")
    assert [token for token, share in after_top_k.items() if share is None] == [3, 4, 5]
    assert sum(share for share in after_top_k.values() if share) == pytest.approx(1, abs=1e-6)


def test_temperature_zero_leaves_the_best_one() -> None:
    assert column(trace_of(temperature=0.0), "temperature") == {0: 1.0, 1: None, 2: None, 3: None, 4: None, 5: None}


def test_the_chosen_token_is_shown_though_it_is_not_among_the_likeliest() -> None:
    token = sampled(SamplingParams(trace=1, forced_token_ids=(5,)))
    assert token.token_id == 5
    assert token.trace is not None
    assert token.trace.token_ids == (0, 5)


def test_tracing_changes_no_choice() -> None:
    for seed in range(50):
        params = SamplingParams(temperature=0.8, top_p=0.8, min_p=0.05)
        traced = SamplingParams(temperature=0.8, top_p=0.8, min_p=0.05, trace=3)
        assert sampled(params, seed=seed).token_id == sampled(traced, seed=seed).token_id


def test_draws_follow_the_last_step() -> None:
    params = SamplingParams(temperature=0.7, top_k=4, trace=6)
    drawn = [sampled(params, seed=seed) for seed in range(2000)]
    assert drawn[0].trace is not None
    last = {token: row[-1] for token, row in zip(drawn[0].trace.token_ids, drawn[0].trace.probabilities, strict=True)}
    for token, share in last.items():
        frequency = sum(each.token_id == token for each in drawn) / len(drawn)
        assert frequency == pytest.approx(share or 0.0, abs=0.04)


def test_torch_draws_only_from_what_its_trace_leaves() -> None:
    params = SamplingParams(temperature=0.7, top_k=4, top_p=0.9, min_p=0.1, trace=6)
    for seed in range(200):
        (token,) = Sampler().sample(torch.tensor(LOGITS)[None].clone(), [sequence_of(params, seed=seed)])
        assert isinstance(token, SampledToken)
        assert token.trace is not None
        assert token.trace.steps == trace_of(temperature=0.7, top_k=4, top_p=0.9, min_p=0.1).steps
        assert dict(zip(token.trace.token_ids, token.trace.probabilities, strict=True))[token.token_id][-1] is not None


def test_torch_takes_the_forced_token() -> None:
    params = SamplingParams(temperature=0.0, trace=1, logprobs=1, forced_token_ids=(4,))
    (token,) = Sampler().sample(torch.tensor(LOGITS)[None].clone(), [sequence_of(params)])
    assert isinstance(token, SampledToken)
    assert token.token_id == 4
    assert token.logprob == pytest.approx(float(np.log(SOFTMAX[4])), rel=1e-4)
