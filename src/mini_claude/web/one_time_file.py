"""A file that was made for one download."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from anyio.to_thread import run_sync
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

MIN_BYTES_PER_SECOND: Final = 65_536  # on the whole; who is slower is cut off, since the file takes room meanwhile
GRACE_SECONDS: Final = 60.0


class OneTimeFile(FileResponse):
    """Sends a whole file, and awaits `close` when that is over, however it ended."""

    def __init__(self, path: Path, file_name: str, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(path, filename=file_name, media_type="application/octet-stream")
        self.headers["accept-ranges"] = "none"  # another request gets another file
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the client stays for."""
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        try:
            num_bytes = (await run_sync(os.stat, self.path)).st_size
            async with asyncio.timeout(GRACE_SECONDS + num_bytes / MIN_BYTES_PER_SECOND):
                await super().__call__(scope, receive, send)
        finally:
            await self._close()
