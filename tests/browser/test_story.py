"""The way to a tuned model in one browser: data, preview, training, reload, certificate, comparison."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ..end_to_end.conftest import Server
from .conftest import OpenPage
from .test_chat import LEAVING, ask

pytestmark = [pytest.mark.real_model, pytest.mark.alone, pytest.mark.timeout(900)]

TRAINING_MS = 480_000  # two to three minutes on a quiet machine
MODEL = "smollm2-135m"
ROWS = """\
{"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Mini-Claude."}]}
{"messages": [{"role": "user", "content": "What is your name?"}]}
{"messages": [{"role": "user", "content": "Your name?"}, {"role": "assistant", "content": "Mini-Claude."}]}
"""


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_from_data_to_a_tuned_model_that_is_proven(
    open_page: OpenPage, server: Server, tmp_path: Path, shoot: Callable[[Page, str], None]
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
