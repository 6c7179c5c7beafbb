"""The Compare tab's events over the echo engine."""

from typing import Any

import gradio as gr
import pytest

from mini_claude.services.identity import LOCAL
from mini_claude.web.page.compare import CompareTab
from mini_claude.web.page.comparison import Comparison
from mini_claude.web.page_line import KEY_HEADER, LIMITS_HEADER, OWNER_HEADER

from ..conftest import Site

SETTINGS = ("smollm2-135m", 0.5, 64, 1, 0, 0, 1, None)


@pytest.fixture
async def tab(site: Site) -> CompareTab:
    with gr.Blocks():
        return CompareTab(site.services)


async def ask(tab: CompareTab, visit: gr.Request, *, blind: bool) -> list[dict[Any, Any]]:
    return [update async for update in tab._ask(visit, "one two", "", blind, *SETTINGS, *SETTINGS)]


async def test_who_has_reached_a_limit_is_told_which(tab: CompareTab, site: Site) -> None:
    headers = {OWNER_HEADER: "a" * 32, KEY_HEADER: "a" * 32, LIMITS_HEADER: '{"requests_per_minute": 1}'}
    with pytest.raises(gr.Error, match="limit of 1 request a minute"):  # two answers are two requests
        await ask(tab, gr.Request(headers=headers), blind=False)
    assert len(site.runtime.requests) == 1


async def test_two_answers_are_shown_without_names_until_one_is_chosen(tab: CompareTab, visit: gr.Request) -> None:
    first, *_, last = await ask(tab, visit, blind=True)
    assert not any(first[button].interactive for button in tab.buttons.values())
    assert all(last[button].interactive for button in tab.buttons.values())
    assert all("one two" in last[answer] for answer in tab.answers)
    assert not any("smollm2" in str(last[place]) for place in (*tab.titles, *tab.proofs, tab.verdict))
    comparison: Comparison = last[tab.comparison]
    chosen = await tab._choose("both_good")(visit, comparison)
    assert all("smollm2-135m" in chosen[place] for place in (*tab.titles, *tab.proofs))
    assert all("temperature 0.5" in chosen[proof] for proof in tab.proofs)
    assert not any(chosen[button].interactive for button in tab.buttons.values())
    with pytest.raises(gr.Error, match="chosen already"):
        await tab._choose("both_bad")(visit, comparison)


async def test_names_are_there_from_the_start_where_nobody_wants_them_hidden(
    tab: CompareTab, visit: gr.Request
) -> None:
    first, *_ = await ask(tab, visit, blind=False)
    assert all("smollm2-135m" in first[title] for title in tab.titles)


async def test_what_cannot_be_asked_or_chosen_is_said_in_words(tab: CompareTab, visit: gr.Request) -> None:
    with pytest.raises(gr.Error, match="Ask a question first"):
        await tab._choose("a")(visit, None)
    with pytest.raises(gr.Error, match="There is no model"):
        async for _ in tab._ask(visit, "one", "", True, "nothing", *SETTINGS[1:], *SETTINGS):
            pass
    with pytest.raises(gr.Error, match="worker"):
        await tab._choose("a")(gr.Request(headers={}), None)


async def test_the_better_answer_becomes_a_preference_pair(tab: CompareTab, visit: gr.Request) -> None:
    short = tuple(5 if value == 64 else value for value in SETTINGS)  # an echo that is cut
    assert short != SETTINGS
    *_, last = [update async for update in tab._ask(visit, "one two", "", False, *SETTINGS, *short)]
    await tab._choose("b")(visit, last[tab.comparison])
    (kept,) = await tab._services.feedback.preferences(LOCAL, 10)
    assert (kept.blind, kept.chosen.model, kept.messages[-1].content) == (False, "smollm2-135m", "one two")
