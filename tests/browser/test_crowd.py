"""Many pages at once."""

import re
import time

import pytest
from playwright.sync_api import expect

from ..torture.sizes import Sizes, at_both_sizes
from .conftest import OpenPage
from .test_chat import LONG, say

pytestmark = [pytest.mark.real_model, pytest.mark.alone]

STOP = "document.querySelector('#say button.stop-button')?.click()"  # of those that have not ended by themselves


@at_both_sizes
def test_pages_that_stream_stay_responsive(open_page: OpenPage, base_url: str, sizes: Sizes) -> None:
    pages = [open_page(base_url, width=900, height=600) for _ in range(sizes.pages)]
    for page in pages:
        page.wait_for_selector("#say textarea")
    for page in pages:
        say(page, LONG)
    for page in pages:
        expect(page.locator("#chatbot .bot.message")).to_contain_text(re.compile(r"\w"))
    started = time.perf_counter()
    pages[0].get_by_role("tab", name="Models").click()
    expect(pages[0].locator("#models article").first).to_be_visible()
    assert time.perf_counter() - started < 10
    pages[0].get_by_role("tab", name="Chat").click()
    for page in pages:
        page.evaluate(STOP)
    for page in pages:
        expect(page.locator("#facts")).to_contain_text("tokens/s")
