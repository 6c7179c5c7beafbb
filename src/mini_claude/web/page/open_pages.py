"""Whether anybody has the page open: Gradio looks for events again and again, which nobody needs while none is."""

import asyncio
from typing import Final

from gradio.queueing import Queue
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_SECONDS: Final = 0.02  # how often events of visitors are looked for
CLOSED_SECONDS: Final = 0.5  # and while nobody has the page open
LEAVING_SECONDS: Final = 3.0  # after the last request: one that opens has events soon after it got its parts
PROGRESS_SECONDS: Final = 60.0  # and what events say of their progress: none of ours does


def rest(queue: Queue) -> None:
    """Nobody has the page open. Left as they are these loops take 5% of a core for ever."""
    queue.sleep_when_free = CLOSED_SECONDS
    queue.progress_update_sleep_when_free = PROGRESS_SECONDS


class OpenPages:
    """ASGI middleware. A page that is open keeps a request under way, its heartbeat."""

    def __init__(self, app: ASGIApp, queue: Queue) -> None:
        self._app = app
        self._queue = queue
        self._num_requests = 0
        self._rest: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._rest is not None:
            self._rest.cancel()
        self._num_requests += 1
        self._queue.sleep_when_free = OPEN_SECONDS
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1
            if not self._num_requests:
                self._rest = asyncio.get_running_loop().call_later(LEAVING_SECONDS, rest, self._queue)
