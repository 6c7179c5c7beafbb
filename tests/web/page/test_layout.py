"""The page as a whole, without a browser."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from mini_claude.web.page import open_pages
from mini_claude.web.page.layout import build_page
from mini_claude.web.page.open_pages import CLOSED_SECONDS, OPEN_SECONDS, PROGRESS_SECONDS, OpenPages

from ..conftest import Site


async def unread() -> Message:
    raise AssertionError("nobody reads")


async def unsent(message: Message) -> None:
    raise AssertionError("nobody answers")


async def turns() -> None:
    """Of the event loop, so many that what is due has been done."""
    for _ in range(10):
        await asyncio.sleep(0)


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


async def test_events_are_looked_for_often_while_a_request_of_the_page_is_under_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested = asyncio.Event()
    monkeypatch.setattr(open_pages, "rest", lambda _queue: rested.set())
    monkeypatch.setattr(open_pages, "LEAVING_SECONDS", 0.0)
    queue = build_page(site.services)._queue
    begun, ended = asyncio.Event(), [asyncio.Event(), asyncio.Event()]

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        begun.set()
        await ended[scope["number"]].wait()

    pages = OpenPages(app, queue)
    requests = [asyncio.create_task(pages({"type": "http", "number": number}, unread, unsent)) for number in range(2)]
    await begun.wait()
    assert queue.sleep_when_free == OPEN_SECONDS
    ended[0].set()
    await requests[0]
    await turns()
    assert not rested.is_set()
    ended[1].set()
    await requests[1]
    await rested.wait()


async def test_a_page_that_is_asked_for_again_in_time_counts_as_open(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested = asyncio.Event()
    monkeypatch.setattr(open_pages, "rest", lambda _queue: rested.set())
    monkeypatch.setattr(open_pages, "LEAVING_SECONDS", 0.0)

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        if scope["number"] == 2:
            await turns()
            assert not rested.is_set()

    pages = OpenPages(app, build_page(site.services)._queue)
    for number in (1, 2):
        await pages({"type": "http", "number": number}, unread, unsent)
    await rested.wait()
