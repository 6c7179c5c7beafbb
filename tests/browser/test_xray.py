"""The X-ray, as somebody looks at an answer who wants to know how it came about."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from .test_chat import SHORT, ask

pytestmark = [pytest.mark.real_model, pytest.mark.alone]


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="X-ray").click()


def test_an_answer_shows_its_prompt_tokens_candidates_and_times(page: Page, shoot: Callable[[Page, str], None]) -> None:
    open_tab(page)
    page.click("#xray-ask")
    expect(page.locator("#xray-tokens button").first).to_be_visible()
    expect(page.locator("#xray-prompt .control").first).to_have_text("<|im_start|>")
    expect(page.locator("#xray-candidates th")).to_contain_text(
        ["Candidate", "Id", "Model", "Temperature", "Top k", "Top p"]
    )
    expect(page.locator("#xray-stages th")).to_have_text(
        ["render", "tokenize", "queue", "prefill", "decode", "sampling", "detokenize"]
    )
    shoot(page, "xray")


def test_a_candidate_that_is_clicked_becomes_the_answers_next_word(page: Page) -> None:
    open_tab(page)
    page.click("#xray-ask")
    page.locator("#xray-tokens button").nth(1).click()
    expect(page.locator("#xray-candidates caption")).to_contain_text("Token 2 of")
    candidate = page.locator("#xray-candidates tbody button").nth(2)
    word = candidate.inner_text()
    candidate.click()
    expect(page.locator("#xray-tokens button").nth(1)).to_have_text(word)
    expect(page.locator("#xray-candidates tr.taken button")).to_have_text(word)


def test_an_answer_of_the_chat_is_read_again(page: Page) -> None:
    answer = ask(page, SHORT)
    open_tab(page)
    expect(page.locator("#xray-reply input")).to_have_value(re.compile("Paris"))
    page.click("#xray-look")
    expect(page.locator("#xray-summary")).to_contain_text("This stored answer was read again")
    words = page.locator("#xray-tokens button").all_inner_texts()
    assert "".join(words).replace("·", " ").replace("<|im_end|>", "").strip() == answer.strip()
