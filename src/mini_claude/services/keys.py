"""API keys: made once, shown once, kept as a hash. Each has a role, and perhaps an end and limits."""

import hashlib
import hmac
import re
import secrets
import time
import uuid
from collections.abc import Sequence
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.door import DoorRepository
from mini_claude.data.keys import KeyRepository
from mini_claude.data.records import NO_LIMITS, ApiKey, KeyRole, Limits
from mini_claude.errors import InvalidRequest, NotFound, Unauthorized
from mini_claude.services.identity import Caller
from mini_claude.services.limits import check_limits

PREFIX: Final = "mc-"
_KEY: Final = re.compile(r"mc-[A-Za-z0-9_-]{43}")  # 32 random bytes, base64url
_PREFIX_CHARACTERS: Final = 9  # enough to recognise a key in a list; 222 of its 256 bits stay unknown
_MAX_SECONDS: Final = 100 * 365 * 86_400  # a hundred years; any date before that can be written
_UNAUTHORIZED: Final = "This API key is not valid; `mini-claude keys create NAME` makes one."


class KeyService:
    """Makes, lists, revokes and checks API keys."""

    def __init__(self, repository: KeyRepository, door: DoorRepository) -> None:
        self._repository = repository
        self._door = door

    async def create(
        self,
        name: str,
        role: KeyRole | None = None,
        expires_at: float | None = None,
        limits: Limits = NO_LIMITS,
    ) -> tuple[ApiKey, str]:
        """A new key's record and its text, which is stored nowhere.

        No `role` means a user's, where there is an admin's key already; else an admin's, so that somebody can manage
        the server. `expires_at` is Unix time, None: never. Raises `InvalidRequest` for an unusable name, time or limit.
        """
        name = " ".join(name.split())
        if not 1 <= len(name) <= 200 or not name.isprintable():
            raise InvalidRequest("A key needs a name of 1 to 200 printable characters.", param="name")
        now = time.time()
        if expires_at is not None and not now < expires_at <= now + _MAX_SECONDS:
            raise InvalidRequest(
                "A key can expire at a time that is still to come, at most 100 years from now; it is given in seconds "
                "since 1970. Leave it out for a key that never does.",
                param="expires_at",
            )
        check_limits(limits)
        if role is None:
            role = "user" if await self.has_admin() else "admin"
        plain = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(uuid.uuid4().hex, name, plain[:_PREFIX_CHARACTERS], now, role, expires_at, limits=limits)
        await run_sync(self._repository.add, key, _sha256(plain))
        return key, plain

    async def list(self) -> Sequence[ApiKey]:
        """All keys, revoked and expired ones too, oldest first."""
        return await run_sync(self._repository.list)

    async def get(self, key_id: str) -> ApiKey:
        """One key. Raises `NotFound`."""
        return await run_sync(self._repository.get, key_id)

    async def revoke(self, key_id: str) -> None:
        """From now on the key is refused, by every worker. Raises `NotFound`."""
        await run_sync(self._repository.revoke, key_id, time.time())

    async def set_limits(self, key_id: str, limits: Limits) -> ApiKey:
        """Give the key these limits of its own, for its next request on. Raises `NotFound`, `InvalidRequest`."""
        check_limits(limits)
        return await run_sync(self._repository.set_limits, key_id, limits)

    async def named(self, name: str) -> ApiKey:
        """The key of that id, or that alone has this name and is not revoked. Raises `NotFound`, `InvalidRequest`."""
        keys = [key for key in await self.list() if key.id == name or (key.name == name and key.revoked_at is None)]
        if not keys:
            raise NotFound(f"There is no key {name[:80]!r}; `mini-claude keys list` shows names and ids.")
        if len(keys) > 1:
            ids = ", ".join(key.id for key in keys)
            raise InvalidRequest(f"Several keys have the name {name[:80]!r}; give an id: {ids}.", param="name")
        return keys[0]

    async def has_admin(self) -> bool:
        """Whether some admin gets in now, with a key or a password."""
        return await run_sync(self._door.has_admin, time.time())

    async def caller(self, plain: str) -> Caller:
        """Whose key this is. Raises `Unauthorized`."""
        key = await self.authenticate(plain)
        return Caller(key.id, key.id, key.role, key.limits)

    async def authenticate(self, plain: str) -> ApiKey:
        """The key with this text. Raises `Unauthorized`, in the same words whatever is wrong with it."""
        if _KEY.fullmatch(plain):
            digest = _sha256(plain)
            for key, stored in await run_sync(self._repository.find_by_prefix, plain[:_PREFIX_CHARACTERS]):
                if hmac.compare_digest(digest, stored) and key.state(time.time()) == "active":
                    return key
        raise Unauthorized(_UNAUTHORIZED)

    async def require_active(self, key_id: str) -> None:
        """Raise `Unauthorized` where a key that was let in before has ended since."""
        if (await self.get(key_id)).state(time.time()) != "active":
            raise Unauthorized(_UNAUTHORIZED)


def _sha256(plain: str) -> str:
    # A plain hash is enough: unlike a password, 256 random bits cannot be guessed.
    return hashlib.sha256(plain.encode()).hexdigest()
