"""The page as a whole, without a browser."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from mini_claude.web.page.layout import build_page
from mini_claude.web.page.open_pages import CLOSED_SECONDS, OPEN_SECONDS, PROGRESS_SECONDS, OpenPages

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
    assert slept == [CLOSED_SECONDS, PROGRESS_SECONDS]


async def test_events_are_looked_for_often_while_a_request_of_the_page_is_under_way(site: Site) -> None:
    queue = build_page(site.services)._queue
    begun, ended = asyncio.Event(), [asyncio.Event(), asyncio.Event()]

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        begun.set()
        await ended[scope["number"]].wait()

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        raise AssertionError("nobody answers")

    pages = OpenPages(app, queue)
    requests = [asyncio.create_task(pages({"type": "http", "number": number}, receive, send)) for number in range(2)]
    await begun.wait()
    assert queue.sleep_when_free == OPEN_SECONDS
    for request, end, seconds in zip(requests, ended, (OPEN_SECONDS, CLOSED_SECONDS), strict=True):
        end.set()
        await request
        assert queue.sleep_when_free == seconds
