"""The one place that tells who is asking, by what was sent: the text of a key or of a token."""

from anyio.to_thread import run_sync

from mini_claude.data.door import DoorRepository
from mini_claude.services.identity import Caller
from mini_claude.services.keys import KeyService
from mini_claude.services.tokens import PREFIX
from mini_claude.services.users import LoginService


class Credentials:
    """Keys and tokens end in the same `Caller`: for routes, WebSockets and the page alike."""

    def __init__(self, keys: KeyService, logins: LoginService, door: DoorRepository) -> None:
        self._keys = keys
        self._logins = logins
        self._door = door
        self._needed = False
        self._seen: tuple[int, ...] | None = None  # the version of the database in which there was neither

    async def needed(self) -> bool:
        """Whether a key or a user was ever made, so that whoever asks has to say who they are."""
        if self._needed:  # rows are never deleted, so that a yes stays true
            return True
        version = self._door.version()
        if version is None or version != self._seen:  # else nothing at all was stored since
            self._needed = await run_sync(self._door.is_shut)
            self._seen = version
        return self._needed

    async def caller(self, text: str) -> Caller:
        """Whose key or token this is. Raises `Unauthorized`."""
        if text.startswith(PREFIX):
            return await self._logins.caller(text)
        return await self._keys.caller(text)

    async def require_active(self, caller: Caller) -> None:
        """Raise `Unauthorized` where what let the caller in has ended since: they may stay longer than a request."""
        if caller.token is not None:
            await self._logins.require_active(caller.token)
        elif caller.key_id is not None:
            await self._keys.require_active(caller.key_id)
