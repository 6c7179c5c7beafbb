"""What is refused, and with which numbers."""

import pytest

from mini_claude.engine.admission import check_queue, check_request, max_new_tokens
from mini_claude.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from mini_claude.types import GenerationRequest, LoadOptions, SamplingParams


def request(num_prompt_tokens: int, max_tokens: int | None) -> GenerationRequest:
    return GenerationRequest("r", (1,) * num_prompt_tokens, SamplingParams(max_tokens=max_tokens))


@pytest.mark.parametrize(("num_prompt_tokens", "max_tokens"), [(60, 40), (99, None), (1, 99)])
def test_what_fits_exactly_is_accepted(num_prompt_tokens: int, max_tokens: int | None) -> None:
    check_request(request(num_prompt_tokens, max_tokens), 100, 256)


@pytest.mark.parametrize(("num_prompt_tokens", "max_tokens"), [(60, 41), (100, None), (1, 100)])
def test_one_token_too_many_is_refused(num_prompt_tokens: int, max_tokens: int | None) -> None:
    with pytest.raises(ContextLengthExceeded):
        check_request(request(num_prompt_tokens, max_tokens), 100, 256)


def test_the_message_holds_all_numbers() -> None:
    with pytest.raises(ContextLengthExceeded) as raised:
        check_request(request(70, 50), 100, 256)
    assert all(number in raised.value.message for number in ("100", "120", "70", "50"))


@pytest.mark.parametrize("token_id", [-1, 256])
def test_ids_outside_the_vocabulary_are_refused(token_id: int) -> None:
    biased = GenerationRequest("r", (1,), SamplingParams(max_tokens=1, logit_bias={token_id: 1.0}))
    with pytest.raises(InvalidRequest) as raised:
        check_request(biased, 100, 256)
    assert raised.value.param == "logit_bias"
    with pytest.raises(InvalidRequest) as raised:
        check_request(GenerationRequest("r", (token_id,), SamplingParams(max_tokens=1)), 100, 256)
    assert raised.value.param == "prompt"


def test_seats_and_queue_are_bounded_together() -> None:
    options = LoadOptions(max_num_seqs=2, max_waiting=3)
    check_queue(4, options)
    with pytest.raises(Overloaded) as raised:
        check_queue(5, options)
    assert raised.value.retry_after is not None
    assert raised.value.retry_after >= 1


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 90), (20, 20)])
def test_without_max_tokens_the_rest_of_the_context_is_the_limit(max_tokens: int | None, expected: int) -> None:
    assert max_new_tokens(request(10, max_tokens), 100) == expected
