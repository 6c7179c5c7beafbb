"""What is refused, and with which numbers."""

from dataclasses import dataclass

import pytest

from mini_claude.engine.admission import Crowd, Turns, check_request, max_new_tokens
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


def crowd(options: LoadOptions, *owners: str) -> Crowd:
    """With one request of each, none of which has a token yet."""
    made = Crowd(options)
    for number, owner in enumerate(owners):
        made.check_room(owner)
        made.enter(of(owner, number))
    return made


def of(owner: str, number: int) -> GenerationRequest:
    return GenerationRequest(f"{number}", (1,), SamplingParams(), owner=owner)


@pytest.mark.parametrize("owner", ["", "a"])
def test_seats_and_queue_are_bounded_together(owner: str) -> None:
    full = crowd(LoadOptions(max_num_seqs=2, max_waiting=3), *[owner] * 5)
    with pytest.raises(Overloaded, match="busy with 5") as raised:
        full.check_room("b")
    assert raised.value.retry_after is not None
    assert raised.value.retry_after >= 1
    full.leave("0")
    full.check_room("b")


def test_one_owner_leaves_a_quarter_of_a_queue_to_others() -> None:
    options = LoadOptions(max_num_seqs=4, max_waiting=100)
    greedy = crowd(options, *["a"] * 80)
    with pytest.raises(Overloaded, match="76 of your requests wait already"):
        greedy.check_room("a")
    greedy.check_room("b")
    for number in range(4):
        greedy.answered(f"{number}")  # who has a seat and a token does not wait, whoever it is
        greedy.answered(f"{number}")
    with pytest.raises(Overloaded, match="76 of your requests wait already"):
        greedy.check_room("a")
    greedy.leave("79")
    greedy.check_room("a")
    assert len(greedy) == 79


def test_several_crowds_leave_places_to_the_next_owner() -> None:
    options = LoadOptions(max_num_seqs=4, max_waiting=256)
    crowds = Crowd(options)
    for owner in "abc":
        with pytest.raises(Overloaded):
            for number in range(1000):
                crowds.check_room(owner)
                crowds.enter(GenerationRequest(f"{owner}{number}", (1,), SamplingParams(), owner=owner))
    crowds.check_room("z")


def test_who_comes_from_nobody_in_particular_may_fill_the_queue() -> None:
    full = crowd(LoadOptions(max_num_seqs=1, max_waiting=100), *[""] * 101)
    with pytest.raises(Overloaded, match="busy with 101"):
        full.check_room("")


@dataclass(frozen=True)
class Waiting:
    request: GenerationRequest


@pytest.mark.parametrize(
    ("running", "waiting", "expected"),
    [("", "aab", 0), ("a", "aab", 2), ("ab", "aab", 0), ("aabb", "abc", 2), ("aab", "aaab", 3)],
)
def test_the_next_seat_is_for_the_owner_who_has_the_fewest(running: str, waiting: str, expected: int) -> None:
    there = [Waiting(of(owner, -1)) for owner in running]
    candidates = [Waiting(of(owner, number)) for number, owner in enumerate(waiting)]
    assert Turns().next(candidates, there) is candidates[expected]


def test_owners_of_a_single_seat_take_turns() -> None:
    turns = Turns()
    waiting = [Waiting(of(owner, number)) for number, owner in enumerate("aaaabbc")]
    order = ""
    while waiting:
        chosen = turns.next(waiting, ())
        turns.take(chosen.request.owner)
        waiting.remove(chosen)
        order += chosen.request.owner
    assert order == "abcabaa"


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 90), (20, 20)])
def test_without_max_tokens_the_rest_of_the_context_is_the_limit(max_tokens: int | None, expected: int) -> None:
    assert max_new_tokens(request(10, max_tokens), 100) == expected
