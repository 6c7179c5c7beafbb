"""The server that sleeps until it is told to end. That it serves, and ends in order, is what test_shutdown.py and
tests/end_to_end see."""

import asyncio
import signal
from itertools import count

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from mini_claude.utils import waiting_server
from mini_claude.utils.waiting_server import WaitingServer


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("nobody asks")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> WaitingServer:
    """One whose ticks are an hour apart."""
    monkeypatch.setattr(waiting_server, "TICK_SECONDS", 3600.0)
    config = uvicorn.Config(nothing, lifespan="off", log_config=None)
    config.load()
    return WaitingServer(config)


async def test_a_signal_ends_it_at_once(server: WaitingServer) -> None:
    running = asyncio.create_task(server.main_loop())
    while not server.server_state.default_headers:  # its first tick has not been yet
        await asyncio.sleep(0)
    assert not running.done()
    server.handle_exit(signal.SIGTERM, None)
    await running


async def test_a_signal_that_came_before_it_waits_ends_it_too(server: WaitingServer) -> None:
    server.handle_exit(signal.SIGTERM, None)
    await server.main_loop()


async def test_every_tick_tells_the_time(server: WaitingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_server, "TICK_SECONDS", 0.0)
    seconds = count()
    dates: list[bytes] = []

    def time() -> float:
        dates.extend(value for name, value in server.server_state.default_headers if name == b"date")
        if len(dates) == 2:
            server.handle_exit(signal.SIGTERM, None)
        return float(next(seconds))

    monkeypatch.setattr("uvicorn.server.time.time", time)
    await server.main_loop()
    assert dates == [b"Thu, 01 Jan 1970 00:00:00 GMT", b"Thu, 01 Jan 1970 00:00:01 GMT"]


async def test_without_a_date_there_is_nothing_to_wake_for(
    server: WaitingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_server, "TICK_SECONDS", 0.0)
    ticks: list[int] = []

    async def on_tick(counter: int) -> bool:
        ticks.append(counter)
        return server.should_exit

    monkeypatch.setattr(server, "on_tick", on_tick)
    server.config.date_header = False
    running = asyncio.create_task(server.main_loop())
    for _ in range(100):
        await asyncio.sleep(0)
    assert ticks == [0]
    server.handle_exit(signal.SIGTERM, None)
    await running
    assert ticks == [0, 0]
