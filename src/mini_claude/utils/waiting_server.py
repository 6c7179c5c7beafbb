"""uvicorn's server, which sleeps until there is something to do."""

import asyncio
from contextlib import suppress
from types import FrameType
from typing import Final

import uvicorn

TICK_SECONDS: Final = 1.0  # the header with the date says seconds


class WaitingServer(uvicorn.Server):
    """Is woken by the signal that ends it: uvicorn's own looks for one ten times a second, which takes a fifth of a
    percent of a core for ever."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told_to_exit = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Return when the server has to end."""
        self._loop = asyncio.get_running_loop()
        seconds = TICK_SECONDS if self.config.date_header else None
        while not await self.on_tick(0):  # 0: the tick that tells the time
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told_to_exit.wait(), seconds)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        super().handle_exit(sig, frame)
        if self._loop is not None:  # else `main_loop` has not begun, and will see it
            self._loop.call_soon_threadsafe(self._told_to_exit.set)
