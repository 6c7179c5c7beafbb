"""The supervisor's hold on the process that makes the web page: started with it, restarted when it dies, ended with it.

The page is not a part of the API workers because Gradio keeps a visitor's state in memory, so that all requests of one
visitor have to reach one process, and because importing it takes seconds and 100 MB.
"""

import asyncio
import contextlib
from typing import Final

from mini_claude.runtime.child import start_child
from mini_claude.runtime.launches import PageLaunch
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

FIRST_RETRY_SECONDS: Final = 1.0  # before it is started anew, doubled each time
LAST_RETRY_SECONDS: Final = 60.0
END_SECONDS: Final = 5.0
# Nothing leaves this machine: no statistics to Gradio's makers, no look at the hub.
PAGE_ENVIRONMENT: Final = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}


class PageProcess:
    """One child process at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None while none runs."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Keep one running; never returns."""
        delay = FIRST_RETRY_SECONDS
        while True:
            self._process = await self._start()
            started = asyncio.get_running_loop().time()
            code = await self._process.wait()
            self._process = None
            if asyncio.get_running_loop().time() - started > LAST_RETRY_SECONDS:
                delay = FIRST_RETRY_SECONDS
            log.warning("page.exited", exit_code=code, restart_in_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    async def close(self) -> None:
        """End it; `run` must have been cancelled before."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        environment = PAGE_ENVIRONMENT | {"GRADIO_TEMP_DIR": str(self._settings.page_files_dir)}
        plain = self._settings.model_dump(mode="json", exclude={"database_url", "limits_url"})
        launch = PageLaunch(plain, self._settings.effective_database_url, self._settings.plain_limits_url)
        process = await start_child("mini_claude.web.page.server", launch, environment)
        log.info("page.started", pid=process.pid)
        return process
