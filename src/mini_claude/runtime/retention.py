"""Conversations that nobody touched for long are deleted, and their words are not left in the database's file either.

The supervisor does it, of which there is one for a data directory, in a thread: nothing waits for it but writers,
while the file of a database that lost something is written anew.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.database import Database
from mini_claude.data.sessions import SessionRepository
from mini_claude.errors import StorageError
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

SWEEP_SECONDS: Final = 6 * 3600.0
SESSIONS_PER_TRANSACTION: Final = 500  # so that nobody who writes waits long
DAY_SECONDS: Final = 86_400.0


class Retention:
    """Looks now and then. `seconds` is how long a conversation is kept, `clock` gives Unix time."""

    def __init__(self, database: Database, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._sessions = SessionRepository(database)
        self._seconds = seconds
        self._clock = clock

    @classmethod
    def open(cls, settings: Settings) -> "Retention | None":
        """None where conversations are kept for ever, or in one worker's memory, which nobody else can see.

        Raises `StorageError`.
        """
        if not settings.session_retention_days or settings.database_in_memory:
            return None
        database = Database(settings.effective_database_url)
        database.migrate()
        return cls(database, settings.session_retention_days * DAY_SECONDS)

    async def run(self) -> None:
        """Until cancelled."""
        pause = max(min(self._seconds / 4, SWEEP_SECONDS), 1.0)
        while True:
            try:
                await run_sync(self.sweep)
            except StorageError as error:  # a full disk must not end the supervisor; it is tried again
                log.warning("retention.storage", error=error.message)
            await asyncio.sleep(pause)

    def sweep(self) -> int:
        """Delete what is due, how many that were, and erase what was deleted, by hand too. Raises `StorageError`."""
        num_expired = 0
        while found := self._sessions.expire(self._clock(), self._seconds, SESSIONS_PER_TRANSACTION):
            num_expired += found
        if not self._database.erase_deleted():
            log.info("retention.not_erased", reason="the file is being read; it is tried again with the next sweep")
        if num_expired:
            log.info("retention.expired", num_sessions=num_expired)
        return num_expired
