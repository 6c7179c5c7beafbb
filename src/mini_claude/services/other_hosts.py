"""Replies that are written on other hosts which share our database: their engines are out of reach from here."""

import asyncio
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.records import Turn
from mini_claude.data.sessions import SessionRepository
from mini_claude.errors import Conflict, Unavailable

POLL_SECONDS: Final = 0.25
WAIT_SECONDS: Final = 120.0


class OtherHosts:
    """Knows a reply of theirs, and can wait for its end. `host` is our own id, None where we are alone."""

    def __init__(self, sessions: SessionRepository, host: str | None) -> None:
        self.host = host
        self._sessions = sessions

    def write(self, turn: Turn) -> bool:
        """Whether one of them writes it now. What names no host may be ours."""
        return turn.status == "running" and turn.host not in (None, self.host)

    def require_ours(self, turn: Turn) -> None:
        """Raise `Conflict` where one of them writes it."""
        if self.write(turn):
            raise Conflict("Another host of this database writes this reply; stop it there.", param="reply_id")

    async def ended(self, owner: str, turn: Turn) -> Turn:
        """The turn as it is once none of them writes it. Raises `NotFound` when its session was deleted meanwhile, and
        `Unavailable` when it takes too long: the other host may be down."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while self.write(turn):
                    await asyncio.sleep(POLL_SECONDS)
                    turn = await run_sync(self._sessions.reply, owner, turn.id)
        except TimeoutError as error:
            raise Unavailable(
                "Another host of this database writes this reply and has not ended it; try again later, or ask there."
            ) from error
        return turn
