"""The moment at which this worker was told to end.

uvicorn waits for open responses before it ends the lifespan, so what would stay open for ever, like a page's line for
news, has to hear of the signal itself. Where a load balancer asks whether we are ready, it has to hear a no while
others are still served: so the signal can be announced first, and passed on to uvicorn after a time.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_Handler = Callable[[int, FrameType | None], object]


class Shutdown:
    """An event that is set when a signal asks this process to end; whoever handled the signal before still does.

    `drain_seconds` is the time between SIGTERM and both; a second signal, and Ctrl-C, do not wait.
    """

    def __init__(self, drain_seconds: float = 0.0) -> None:
        self._drain_seconds = drain_seconds
        self.announced = False  # from the first signal on
        self._event = asyncio.Event()
        self._handled: dict[signal.Signals, tuple[_Handler, _Handler]] = {}  # by signal: before us, ours

    def listen(self) -> None:
        """From now on; to be called in the event loop's thread. Only a main thread hears signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            self._chain(number, loop)

    def close(self) -> None:
        """Leave the signals to whoever had them before."""
        for number, (before, ours) in self._handled.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, before)
        self._handled.clear()

    async def wait(self) -> None:
        """Return when the process was told to end."""
        await self._event.wait()

    def set(self) -> None:
        """Tell it."""
        self.announced = True
        self._event.set()

    def _chain(self, number: signal.Signals, loop: asyncio.AbstractEventLoop) -> None:
        before = signal.getsignal(number)

        def end(signum: int, frame: FrameType | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._event.set)
            if callable(before):
                before(signum, frame)

        def handle(signum: int, frame: FrameType | None) -> None:
            wait = 0.0 if self.announced or signum != signal.SIGTERM else self._drain_seconds
            self.announced = True
            if wait and not loop.is_closed():
                loop.call_soon_threadsafe(loop.call_later, wait, end, signum, frame)
            else:
                end(signum, frame)

        if callable(before):  # else nobody handles it, and the process just ends
            signal.signal(number, handle)
            self._handled[number] = before, handle
