"""Who is shown first, and when one can choose."""

import pytest

from mini_claude.errors import Conflict, InvalidRequest
from mini_claude.types import Message, SamplingParams
from mini_claude.web.page.comparison import Comparison, new_comparison
from mini_claude.web.page.race import Contestant, Race, RunningAnswer

CONTESTANTS = (Contestant("m:one@1", SamplingParams()), Contestant("m:two@2", SamplingParams()))


def comparison(*finish_reasons: str | None, blind: bool = True) -> Comparison:
    made = new_comparison("Who?", "", CONTESTANTS, blind=blind)
    answers = [RunningAnswer(None, "text", 1, reason) for reason in finish_reasons]  # type: ignore[arg-type]
    made.race = Race(tuple(answers))
    return made


def test_a_blind_comparison_draws_who_comes_first_and_an_open_one_does_not() -> None:
    def firsts(*, blind: bool) -> set[str]:
        return {new_comparison("Who?", "", CONTESTANTS, blind=blind).contestants[0].name for _ in range(100)}

    assert firsts(blind=True) == {"m:one@1", "m:two@2"}  # missed once in 2 ** 99 runs
    assert firsts(blind=False) == {"m:one@1"}


def test_names_are_shown_only_once_nothing_can_be_chosen_any_more() -> None:
    blind = comparison("stop", "length")
    assert not blind.shows_names
    blind.choose("b")
    assert (blind.shows_names, blind.preferred) == (True, 1)
    assert comparison(None, None, blind=False).shows_names


@pytest.mark.parametrize("ends", [(None, "stop"), ("stop", "abort"), ("abort", "abort")])
def test_an_answer_that_was_cut_cannot_be_chosen_nor_lose(ends: tuple[str | None, ...]) -> None:
    cut = comparison(*ends)
    with pytest.raises(InvalidRequest):
        cut.choose("a")
    assert not cut.shows_names


def test_one_can_choose_once() -> None:
    made = comparison("stop", "stop")
    made.choose("both_bad")
    assert made.preferred is None
    with pytest.raises(Conflict):
        made.choose("a")


def test_the_system_prompt_comes_first_and_an_empty_question_is_refused() -> None:
    made = new_comparison("Who?", "Be short.", CONTESTANTS, blind=False)
    assert made.messages == (Message("system", "Be short."), Message("user", "Who?"))
    with pytest.raises(InvalidRequest, match="empty"):
        new_comparison(" \n", "Be short.", CONTESTANTS, blind=False)
