"""The page as a whole, without a browser."""

import asyncio

import pytest

from mini_claude.web.page.layout import EVENTS_SECONDS, PROGRESS_SECONDS, build_page

from ..conftest import Site


async def test_a_page_that_nobody_looks_at_sleeps_most_of_the_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio's own loops wake a thousand and a hundred times a second."""
    queue = build_page(site.services)._queue
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        queue.stopped = True

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for loop in (queue.start_processing, queue.start_progress_updates):
        queue.stopped = False
        await loop()
    assert slept == [EVENTS_SECONDS, PROGRESS_SECONDS]
