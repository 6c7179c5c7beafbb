"""Closing a worker's side of the runtime whatever is under way."""

import asyncio

import psutil

from mini_claude.errors import Unavailable
from mini_claude.runtime.client import RuntimeClient
from mini_claude.types import LoadOptions
from mini_claude.utils.config import Settings

from .conftest import ECHO, chat, engine_pid

OPTIONS = LoadOptions(engine="echo")


async def test_closing_ends_also_while_requests_wait_for_their_engine(
    runtime: RuntimeClient, settings: Settings
) -> None:
    client = await RuntimeClient.connect(settings)
    engine = psutil.Process(await engine_pid(runtime))
    await (await client.start(ECHO, OPTIONS, chat("first"))).aclose()
    engine.suspend()
    try:
        waiting = [asyncio.create_task(client.start(ECHO, OPTIONS, chat(f"waits {number}"))) for number in range(8)]
        await asyncio.sleep(0)  # they have been sent
        async with asyncio.timeout(5):
            await client.aclose()
    finally:
        engine.resume()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 8
