"""API keys: made once, shown once, kept as a hash. Each has a role, and perhaps an end and limits."""

import hashlib
import hmac
import re
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.keys import KeyRepository
from mini_claude.data.records import NO_LIMITS, ApiKey, KeyRole, Limits
from mini_claude.errors import InvalidRequest, Unauthorized

_KEY: Final = re.compile(r"mc-[A-Za-z0-9_-]{43}")  # 32 random bytes, base64url
_PREFIX_CHARACTERS: Final = 9  # enough to recognise a key in a list; 222 of its 256 bits stay unknown
_MAX_SECONDS: Final = 100 * 365 * 86_400  # a hundred years; any date before that can be written
MAX_LIMIT: Final = 1_000_000_000_000  # of what a key may ask for; beyond it a limit limits nothing
_UNAUTHORIZED: Final = "This API key is not valid; `mini-claude keys create NAME` makes one."


class KeyService:
    """Makes, lists, revokes and checks API keys."""

    def __init__(self, repository: KeyRepository) -> None:
        self._repository = repository
        self._exist = False

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
        _check_limits(limits)
        if role is None:
            role = "user" if await self.has_admin() else "admin"
        plain = "mc-" + secrets.token_urlsafe(32)
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

    async def has_admin(self) -> bool:
        """Whether some admin's key opens the server now."""
        now = time.time()
        return any(key.role == "admin" and key.state(now) == "active" for key in await self.list())

    async def any_exist(self) -> bool:
        """Whether a key was ever made. Ended ones count: the end of the last key must not open the server."""
        # Rows of keys are never deleted, so that a yes stays true.
        self._exist = self._exist or await run_sync(self._repository.any_exist)
        return self._exist

    async def authenticate(self, plain: str) -> ApiKey:
        """The key with this text. Raises `Unauthorized`, in the same words whatever is wrong with it."""
        if _KEY.fullmatch(plain):
            digest = _sha256(plain)
            for key, stored in await run_sync(self._repository.find_by_prefix, plain[:_PREFIX_CHARACTERS]):
                if hmac.compare_digest(digest, stored) and key.state(time.time()) == "active":
                    return key
        raise Unauthorized(_UNAUTHORIZED)

    async def require_active(self, key_id: str | None) -> None:
        """Raise `Unauthorized` where a key that was let in before has ended since; None is the local caller."""
        if key_id is not None and (await self.get(key_id)).state(time.time()) != "active":
            raise Unauthorized(_UNAUTHORIZED)


def _check_limits(limits: Limits) -> None:
    for name, value in asdict(limits).items():
        if value is not None and not 0 <= value <= MAX_LIMIT:
            raise InvalidRequest(
                f"{name} is {value}: give 0 (no limit) to {MAX_LIMIT}, or leave it out for what the settings say.",
                param=name,
            )


def _sha256(plain: str) -> str:
    # A plain hash is enough: unlike a password, 256 random bits cannot be guessed.
    return hashlib.sha256(plain.encode()).hexdigest()
