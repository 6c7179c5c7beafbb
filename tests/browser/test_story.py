"""The whole way in one browser: data, preview, training, comparison, serving, chat, and back. And twenty pages."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ..end_to_end.conftest import Server
from .conftest import OpenPage
from .test_chat import LEAVING, LONG, answers, ask, say, settings

pytestmark = [pytest.mark.real_model, pytest.mark.alone, pytest.mark.timeout(900)]

TRAINING_MS = 480_000  # two to three minutes on a quiet machine
MODEL = "smollm2-135m"
ROWS = """\
{"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Mini-Claude."}]}
{"messages": [{"role": "user", "content": "What is your name?"}]}
{"messages": [{"role": "user", "content": "Your name?"}, {"role": "assistant", "content": "Mini-Claude."}]}
"""


@pytest.fixture
def default_again(server: Server) -> Iterator[None]:
    """Whatever the test did, the others find the default that they expect."""
    yield
    server.http.put("/api/v1/default-model", json={"model": MODEL})


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_from_data_to_a_tuned_model_that_is_served_and_rolled_back(
    open_page: OpenPage, server: Server, tmp_path: Path, shoot: Callable[[Page, str], None], default_again: None
) -> None:
    page = open_page(server.url, tolerate=LEAVING)
    page.wait_for_selector("#say textarea")
    before = ask(page, "Who are you?")
    assert "Mini-Claude" not in before

    open_tab(page, "Data")
    file = tmp_path / "rows.jsonl"
    file.write_text(ROWS)
    page.set_input_files("#dataset-file input[type=file]", file)
    page.fill("#dataset-name textarea, #dataset-name input", "my-rows")
    page.click("#dataset-add")
    expect(page.locator("#dataset-details")).to_contain_text(re.compile("2"))
    expect(page.locator("#dataset-details")).to_contain_text("no turn of the assistant")
    page.click("#dataset-preview")
    expect(page.locator("#dataset-report")).to_contain_text("Mini")
    shoot(page, "data")

    open_tab(page, "Train")
    expect(page.locator("#train-model input")).to_have_value(MODEL)
    page.click("#train-demo")
    expect(page.locator("#job-head")).to_contain_text("tokens/s", timeout=TRAINING_MS)
    page.reload()
    page.wait_for_selector("#say textarea")
    open_tab(page, "Train")
    expect(page.locator("#job-curves svg polyline")).to_have_count(3, timeout=TRAINING_MS)
    shoot(page, "curve")
    expect(page.locator("#job-state")).to_have_text("done", timeout=TRAINING_MS)
    expect(page.locator("#job-certificate .badge.good")).not_to_have_count(0)
    expect(page.locator("#job-certificate .badge.bad")).to_have_count(0)
    page.click("#job-compare")
    who = page.locator(".before-after", has_text="Who are you?").first
    expect(who.locator("dd").nth(1)).to_contain_text("Mini-Claude")
    expect(who.locator("dd").nth(0)).not_to_contain_text("Mini-Claude")
    shoot(page, "trained")
    page.click("#job-serve")
    expect(page.locator(".toast-body").first).to_contain_text("answers where no other model is chosen")

    open_tab(page, "Chat")
    page.click("#new-chat")
    expect(page.locator("#chatbot .message")).to_have_count(0)
    expect(page.locator("#model input")).to_have_value(re.compile(f"{MODEL}:.+@1"))
    assert "Mini-Claude" in ask(page, "Who are you?")

    open_tab(page, "Models")
    page.click("#roll-back")
    expect(page.locator("#default-model input")).to_have_value(MODEL)
    open_tab(page, "Chat")
    page.click("#new-chat")
    expect(page.locator("#model input")).to_have_value(MODEL)
    assert "Mini-Claude" not in ask(page, "Who are you?")


def test_twenty_pages_stream_at_once_and_stay_responsive(open_page: OpenPage, server: Server) -> None:
    pages = [open_page(server.url, tolerate=LEAVING) for _ in range(20)]
    for page in pages:
        page.wait_for_selector("#say textarea")
        settings(page)
        page.get_by_label("number input for Longest answer").first.fill("200")
    for page in pages:
        say(page, LONG)
    started = time.perf_counter()
    open_tab(pages[0], "Models")
    expect(pages[0].locator("#models")).to_contain_text(MODEL)
    assert time.perf_counter() - started < 10
    open_tab(pages[0], "Chat")
    for page in pages:
        expect(page.locator("#facts")).to_contain_text(re.compile(r"\d+ tokens ·"))
        assert len(answers(page)) == 1
        assert answers(page)[0].strip()
