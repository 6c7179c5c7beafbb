"""Training on the page: settings with help, estimates, cancelling. The way to a tuned model is in test_story.py."""

import json
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from ..end_to_end.conftest import Server
from .conftest import open_settings

pytestmark = [pytest.mark.real_model, pytest.mark.alone]

Shoot = Callable[[Page, str], None]


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#train-model input")).not_to_have_value("")


def state(page: Page, word: str, timeout: float = 120_000) -> None:
    expect(page.locator("#job-state")).to_have_text(word, timeout=timeout)


def choose_dataset(page: Page, name: str) -> None:
    page.click("#train-dataset input")
    page.get_by_role("option", name=name).click()


def add_rows(server: Server, name: str) -> None:
    rows = [json.dumps([f"What is {n} + 1?", f"{n + 1}"]) for n in range(40)]
    content = ("\n".join(rows) + "\n").encode()
    answer = server.http.post("/api/v1/datasets", files={"file": (f"{name}.jsonl", content)}, data={"name": name})
    assert answer.is_success, answer.text


def test_every_setting_has_help_and_a_preset_fills_them_in(page: Page, server: Server, shoot: Shoot) -> None:
    add_rows(server, "sums-of-help")
    open_tab(page)
    choose_dataset(page, "sums-of-help")
    expect(page.locator("#train-note")).to_contain_text("40 rows")
    open_settings(page, "#train-settings")
    expect(page.locator("#train-num_train_epochs")).to_contain_text("How often all rows are seen.")
    page.get_by_label("Quick", exact=True).check()
    expect(page.locator("#train-num_train_epochs input")).to_have_value("1")
    expect(page.locator("#train-r input")).to_have_value("8")
    shoot(page, "settings")


def test_time_and_memory_are_estimated_before_the_start(page: Page, server: Server) -> None:
    add_rows(server, "sums-to-estimate")
    open_tab(page)
    choose_dataset(page, "sums-to-estimate")
    expect(page.locator("#train-note")).to_contain_text("40 rows")
    page.click("#train-estimate")
    expect(page.locator("#train-estimated")).to_contain_text(
        re.compile(r"About \d+ \w+ for \d+ steps.* GB of memory"), timeout=180_000
    )


def test_a_job_is_cancelled_and_can_go_on(page: Page, server: Server) -> None:
    add_rows(server, "sums-to-cancel")
    open_tab(page)
    choose_dataset(page, "sums-to-cancel")
    expect(page.locator("#train-note")).to_contain_text("40 rows")
    page.click("#train-start")
    expect(page.locator("#job-cancel")).to_be_visible()
    page.click("#job-cancel")
    state(page, "cancelled")
    expect(page.locator("#job-resume")).to_be_visible()
    expect(page.locator("#job-log")).to_contain_text("Cancelled.")
    expect(page.locator("#jobs button[aria-current=true]")).to_contain_text("cancelled")
