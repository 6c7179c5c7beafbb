"""What both samplers draw, in which order the steps apply, and that rows do not see each other."""

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
import torch

from mini_claude.engine.array_sampler import ArraySampler
from mini_claude.engine.reply_text import ReplyText
from mini_claude.engine.sampler import NUM_CANDIDATES, Sampler
from mini_claude.engine.sequence import SampledToken, Sequence
from mini_claude.errors import InternalError
from mini_claude.models.echo_model import ByteCodec
from mini_claude.types import GenerationRequest, SamplingParams

PROBS = torch.tensor([0.5, 0.3, 0.15, 0.05])
NUM_DRAWS = 4000
Sample = Callable[[torch.Tensor, list[Sequence]], list[SampledToken | InternalError]]


@pytest.fixture(params=["torch", "torch without looking", "arrays"])
def sample(request: pytest.FixtureRequest) -> Sample:
    """Leaves the logits as they are. On a GPU nothing is looked at before everything has been asked for."""
    if request.param == "torch":
        return lambda logits, sequences: Sampler().sample(logits.clone(), sequences)
    if request.param == "torch without looking":
        return lambda logits, sequences: Sampler(num_candidates=None).sample(logits.clone(), sequences)
    return lambda logits, sequences: ArraySampler().sample(logits.clone().numpy(), sequences)


def sequence(params: SamplingParams, output: tuple[int, ...] = ()) -> Sequence:
    made = Sequence(GenerationRequest("r", (0,), params), 100, ReplyText(ByteCodec(), ()), Random(params.seed))
    made.token_ids.extend(output)
    return made


def draw(sample: Sample, params: SamplingParams, logits: torch.Tensor, output: tuple[int, ...] = ()) -> SampledToken:
    token = sample(logits[None], [sequence(params, output)])[0]
    assert isinstance(token, SampledToken)
    return token


def frequencies(sample: Sample, params: SamplingParams) -> dict[int, float]:
    one = sequence(params)
    counts: Counter[int] = Counter()
    for _ in range(NUM_DRAWS):
        token = sample(PROBS.log()[None], [one])[0]
        assert isinstance(token, SampledToken)
        counts[token.token_id] += 1
    return {token_id: count / NUM_DRAWS for token_id, count in counts.items()}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(seed=1), [0.5, 0.3, 0.15, 0.05]),
        (SamplingParams(seed=1, temperature=0.5), [0.685, 0.247, 0.062, 0.007]),
        (SamplingParams(seed=1, top_k=2), [0.625, 0.375, 0, 0]),
        (SamplingParams(seed=1, top_p=0.7), [0.625, 0.375, 0, 0]),
        (SamplingParams(seed=1, min_p=0.2), [0.526, 0.316, 0.158, 0]),
        (SamplingParams(seed=1, top_k=3, top_p=0.99, min_p=0.5), [0.625, 0.375, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_their_probability_says(
    sample: Sample, params: SamplingParams, expected: list[float]
) -> None:
    drawn = frequencies(sample, params)
    for token_id, probability in enumerate(expected):
        assert drawn.get(token_id, 0.0) == pytest.approx(probability, abs=0.03)
        assert probability or token_id not in drawn


def test_temperature_zero_takes_the_likeliest(sample: Sample) -> None:
    assert {draw(sample, SamplingParams(temperature=0.0, seed=seed), PROBS.log()).token_id for seed in range(20)} == {0}


def test_frequency_and_presence_penalties_are_subtracted_from_generated_tokens(sample: Sample) -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    params = SamplingParams(temperature=0.0, frequency_penalty=0.6)
    assert draw(sample, params, logits, output=(0,)).token_id == 0
    assert draw(sample, params, logits, output=(0, 0)).token_id == 1
    assert draw(sample, SamplingParams(temperature=0.0, presence_penalty=1.5), logits, output=(0,)).token_id == 1
    assert (
        draw(sample, SamplingParams(temperature=0.0, presence_penalty=1.5), logits).token_id == 0
    )  # the prompt's 0 is free


def test_repetition_penalty_counts_the_prompt_and_pushes_down_both_signs(sample: Sample) -> None:
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0)
    assert draw(sample, params, torch.tensor([3.0, 2.0, 1.0])).token_id == 1
    assert draw(sample, params, torch.tensor([-1.0, -1.5, -9.0])).token_id == 1


def test_logit_bias_is_added(sample: Sample) -> None:
    assert draw(sample, SamplingParams(temperature=0.0, logit_bias={3: 100.0}), PROBS.log()).token_id == 3


def test_logprobs_are_the_models_own_whatever_is_done_to_the_logits(sample: Sample) -> None:
    params = SamplingParams(temperature=0.0, logit_bias={3: 100.0}, logprobs=2)
    token = draw(sample, params, PROBS.log())
    assert token.logprob == pytest.approx(float(PROBS[3].log()), abs=1e-5)
    assert [token_id for token_id, _ in token.top] == [0, 1]
    assert [logprob for _, logprob in token.top] == pytest.approx(PROBS[:2].log().tolist(), abs=1e-5)


def test_a_seed_draws_the_same_tokens_alone_and_in_a_batch(sample: Sample) -> None:
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(seed=7, top_p=0.9 if row % 2 else 1.0) for row in range(8)]
    together = sample(logits, [sequence(each) for each in params])
    alone = [sample(logits[[row]], [sequence(params[row])])[0] for row in range(8)]
    assert together == alone


def test_a_row_without_usable_scores_fails_alone(sample: Sample) -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    sequences = [sequence(SamplingParams(seed=row)) for row in range(8)]
    healthy = sample(logits, [sequence(SamplingParams(seed=row)) for row in range(8)])
    logits[3, 7] = float("nan")
    poisoned = sample(logits, sequences)
    assert isinstance(poisoned[3], InternalError)
    assert [token for row, token in enumerate(poisoned) if row != 3] == [
        token for row, token in enumerate(healthy) if row != 3
    ]


def test_top_p_is_of_what_top_k_leaves_also_past_the_first_candidates(sample: Sample) -> None:
    logits = -torch.arange(2000) / 100.0  # the first 256 have 92% of the mass, 90% of the first 600's are 229
    one = sequence(SamplingParams(seed=1, top_k=600, top_p=0.9))
    drawn = [
        token.token_id
        for _ in range(2000)
        for token in sample(logits[None], [one])
        if not isinstance(token, InternalError)
    ]
    assert 200 < max(drawn) < 230


@pytest.mark.parametrize("num_candidates", [NUM_CANDIDATES, None])
def test_both_samplers_draw_the_same_tokens(num_candidates: int | None) -> None:
    logits = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0)) * 3
    kinds = [{}, {"top_k": 40}, {"top_p": 0.9}, {"top_p": 0.999, "temperature": 2.0}, {"min_p": 0.1, "top_k": 600}]
    wanted = [SamplingParams(seed=row, logprobs=3, **kinds[row % 5]) for row in range(40)]  # type: ignore[arg-type]
    by_torch = Sampler(num_candidates).sample(logits.clone(), [sequence(params) for params in wanted])
    by_arrays = ArraySampler().sample(logits.clone().numpy(), [sequence(params) for params in wanted])
    for one, other in zip(by_torch, by_arrays, strict=True):
        assert isinstance(one, SampledToken)
        assert isinstance(other, SampledToken)
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token_id for token_id, _ in one.top] == [token_id for token_id, _ in other.top]
