"""The Data tab as somebody uses it who has a file with examples, and a mistake in it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .conftest import OpenPage

pytestmark = [pytest.mark.real_model, pytest.mark.alone]

Shoot = Callable[[Page, str], None]


def rows_file(tmp_path: Path, name: str) -> Path:
    """Twelve questions with answers, one question without, and a line that is no JSON."""
    turns = [
        [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": f"It is <b>{n + 1}</b>."}]
        for n in range(12)
    ]
    lines = [json.dumps({"messages": messages}) for messages in [*turns, turns[0][:1]]]
    path = tmp_path / f"{name}.jsonl"
    path.write_text("\n".join([*lines, "no JSON"]) + "\n")
    return path


def add_file(page: Page, path: Path) -> None:
    page.get_by_role("tab", name="Data").click()
    page.set_input_files("#dataset-file input[type=file]", path)
    expect(page.locator("#dataset-name").locator("input, textarea")).to_have_value(path.stem)
    page.click("#dataset-add")
    expect(page.locator("#datasets button[aria-current=true]")).to_contain_text(path.stem)


def test_a_file_is_added_its_broken_rows_are_told_and_its_tokens_shown(
    page: Page, tmp_path: Path, shoot: Shoot
) -> None:
    add_file(page, rows_file(tmp_path, "sums"))
    details = page.locator("#dataset-details")
    expect(details).to_contain_text("14 rows of chat messages in JSON lines")
    expect(details).to_contain_text("2 of 14 rows cannot be used")
    expect(details.locator("tbody tr")).to_contain_text(
        [re.compile("13.*13.*no turn of the assistant"), "not valid JSON"]
    )
    page.click("#dataset-preview")
    expect(page.locator("#dataset-report mark", has_text="It").first).to_be_visible()
    report = page.locator("#dataset-report")
    expect(report.locator(".tokens").first).to_contain_text("It is <b>1</b>.<|im_end|>")
    expect(report.locator(".tokens").first.locator("span", has_text="<|im_start|>").first).to_be_visible()
    expect(report.locator(".histogram tbody tr")).not_to_have_count(0)
    shoot(page, "preview")


def test_a_dataset_is_deleted_after_a_second_thought(page: Page, tmp_path: Path) -> None:
    add_file(page, rows_file(tmp_path, "passing"))
    page.click("#dataset-delete")
    page.click("#dataset-confirm")
    expect(page.locator("#dataset-details")).to_contain_text("Add a file")
    expect(page.locator("#datasets")).not_to_contain_text("passing")


def test_a_file_that_is_no_dataset_is_explained(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "nonsense.json"
    path.write_text('{"colour": "blue"}')
    page.get_by_role("tab", name="Data").click()
    page.set_input_files("#dataset-file input[type=file]", path)
    expect(page.locator("#dataset-name").locator("input, textarea")).to_have_value("nonsense")
    page.click("#dataset-add")
    expect(page.locator(".toast-body").first).to_contain_text("No row has a format that is known")


@pytest.mark.parametrize("dark", [False, True])
def test_the_tab_fits_on_a_phone(
    open_page: OpenPage, base_url: str, tmp_path: Path, shoot: Shoot, *, dark: bool
) -> None:
    page = open_page(base_url, width=390, height=844, dark=dark)
    page.wait_for_selector("#say textarea")
    add_file(page, rows_file(tmp_path, "small"))
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    shoot(page, "dark" if dark else "light")
