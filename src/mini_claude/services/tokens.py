"""Access tokens: JWTs of one kind, signed by this server and for it alone. Who they stand for is not decided here."""

import time
import uuid
from dataclasses import dataclass
from typing import Any, Final

import jwt

from mini_claude.errors import Unauthorized

ALGORITHM: Final = "HS256"  # no token says how it is to be checked
ISSUER: Final = "mini-claude"
AUDIENCE: Final = "mini-claude-api"
PREFIX: Final = "eyJ"  # of every JWT: '{"' in base64url
MAX_CHARACTERS: Final = 1024  # ours have about 350
REQUIRED: Final = ("exp", "iat", "iss", "aud", "jti", "sub", "gen")
UNAUTHORIZED: Final = "This token is not valid, or not any more: sign in again, POST /api/v1/auth/login."


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a token says: `generation` is the user's when it was made, `expires_at` Unix time."""

    id: str
    user_id: str
    generation: int
    expires_at: float


class TokenSigner:
    """Makes and reads tokens. `secret` has 32 bytes at least, `seconds` is how long a token lasts."""

    def __init__(self, secret: bytes, seconds: float) -> None:
        self._secret = secret
        self._seconds = seconds

    def make(self, user_id: str, generation: int) -> tuple[AccessToken, str]:
        """A new token and its text."""
        now = int(time.time())
        token = AccessToken(uuid.uuid4().hex, user_id, generation, now + int(self._seconds))
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user_id,
            "jti": token.id,
            "gen": generation,
            "iat": now,
            "exp": int(token.expires_at),
        }
        return token, jwt.encode(claims, self._secret, ALGORITHM)

    def read(self, text: str) -> AccessToken:
        """What a text says that we signed. Raises `Unauthorized`, in the same words whatever is wrong with it."""
        try:
            if len(text) > MAX_CHARACTERS:
                raise jwt.InvalidTokenError
            claims: dict[str, Any] = jwt.decode(
                text,
                self._secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": list(REQUIRED)},
            )
        except (jwt.PyJWTError, UnicodeError) as error:
            raise Unauthorized(UNAUTHORIZED) from error
        return AccessToken(claims["jti"], claims["sub"], claims["gen"], float(claims["exp"]))
