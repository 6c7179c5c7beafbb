"""Passwords: what may be one, their hashes, and comparing, which takes as long for users that do not exist."""

import unicodedata
from typing import Final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from mini_claude.errors import InvalidRequest

MIN_CHARACTERS: Final = 12
MAX_CHARACTERS: Final = 128
# OWASP's first choice for Argon2id: 46 MiB and about 60 ms of a core.
_HASHER: Final = PasswordHasher(time_cost=1, memory_cost=47_104, parallelism=1)
# Nobody's: compared with what is sent for a name that nobody has. Its parameters are those of all others.
NOBODYS_HASH: Final = (
    "$argon2id$v=19$m=47104,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
_AT_ONCE: Final = 2  # in one worker: each takes the memory above


class Passwords:
    """Hashes and compares, a few at once."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(_AT_ONCE)

    async def hash(self, password: str) -> str:
        """What is stored. Raises `InvalidRequest` for a password that is too short or too long."""
        plain = _normal(password)
        if not MIN_CHARACTERS <= len(plain) <= MAX_CHARACTERS:
            raise InvalidRequest(
                f"A password has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters; a few words are a good one.",
                param="password",
            )
        return await run_sync(_HASHER.hash, plain, limiter=self._limiter)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether this is the password of that hash; None is nobody's, and takes as long."""
        same = await run_sync(_same, stored or NOBODYS_HASH, _normal(password), limiter=self._limiter)
        return same and stored is not None


def _normal(password: str) -> str:
    # One letter can be spelled in several ways, and keyboards differ (NIST SP 800-63B).
    return unicodedata.normalize("NFKC", password)


def _same(stored: str, plain: str) -> bool:
    try:
        return _HASHER.verify(stored, plain.encode("utf-8", "surrogatepass"))
    except VerifyMismatchError:
        return False
