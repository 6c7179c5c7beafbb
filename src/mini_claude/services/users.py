"""Users: people who sign in with a name and a password and get a token for a while."""

import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.door import DoorRepository
from mini_claude.data.preferences import PreferenceRepository
from mini_claude.data.records import NO_LIMITS, KeyRole, Limits, User
from mini_claude.data.sessions import SessionRepository
from mini_claude.data.users import UserRepository
from mini_claude.errors import InvalidRequest, NotFound, Unauthorized
from mini_claude.services.identity import Caller
from mini_claude.services.limits import check_limits
from mini_claude.services.login_attempts import LoginAttempts
from mini_claude.services.passwords import Passwords
from mini_claude.services.places import Places
from mini_claude.services.tokens import UNAUTHORIZED, AccessToken, TokenSigner

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")
MAX_WAITING: Final = 32  # for a comparison, in one worker: about a second's
_WRONG: Final = "The name or the password is wrong."  # the same for users that are not there, or are disabled


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new token's text, until when it holds (Unix time), and whose it is."""

    text: str
    token: AccessToken
    user: User


class UserService:
    """Makes, lists and changes users; what needs no signature."""

    def __init__(
        self,
        repository: UserRepository,
        sessions: SessionRepository,
        preferences: PreferenceRepository,
        door: DoorRepository,
    ) -> None:
        self._repository = repository
        self._sessions = sessions
        self._preferences = preferences
        self._door = door
        self._passwords = Passwords()

    async def create(self, name: str, password: str, role: KeyRole | None = None, limits: Limits = NO_LIMITS) -> User:
        """A new user. No `role` means a user's where somebody is an admin already, else an admin's.

        Raises `InvalidRequest` for an unusable name, password or limit, and `Conflict` for a name that is taken.
        """
        name = name.strip().lower()
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                "A user's name has up to 64 letters a to z, digits, '.', '_', '@', '+' and '-', and begins with a "
                "letter or a digit.",
                param="name",
            )
        check_limits(limits)
        password_hash = await self._passwords.hash(password)
        now = time.time()
        if role is None:
            role = "user" if await run_sync(self._door.has_admin, now) else "admin"
        user = User(uuid.uuid4().hex, name, role, now, limits=limits)
        await run_sync(self._repository.add, user, password_hash)
        return user

    async def list(self) -> Sequence[User]:
        """All users, disabled ones too, oldest first."""
        return await run_sync(self._repository.list)

    async def get(self, user_id: str) -> User:
        """One user. Raises `NotFound`."""
        user = await run_sync(self._repository.find, user_id)
        if user is None:
            raise _unknown(user_id)
        return user

    async def named(self, name: str) -> User:
        """The user of that name. Raises `NotFound`."""
        found = await run_sync(self._repository.find_by_name, name.strip().lower())
        if found is None:
            raise _unknown(name)
        return found[0]

    async def set_role(self, user_id: str, role: KeyRole) -> User:
        """Let the user be an admin, or none any more, from the next request on. Raises `NotFound`."""
        return await run_sync(self._repository.set_role, user_id, role)

    async def set_limits(self, user_id: str, limits: Limits) -> User:
        """Give the user these limits of their own. Raises `NotFound`, `InvalidRequest`."""
        check_limits(limits)
        return await run_sync(self._repository.set_limits, user_id, limits)

    async def set_password(self, user_id: str, password: str) -> User:
        """A new password; tokens from before are refused. Raises `NotFound`, `InvalidRequest`."""
        return await run_sync(self._repository.set_password, user_id, await self._passwords.hash(password))

    async def disable(self, user_id: str) -> User:
        """Refuse the user, and all tokens of theirs for ever. Raises `NotFound`."""
        return await run_sync(self._repository.disable, user_id, time.time())

    async def enable(self, user_id: str) -> User:
        """Let the user sign in again. Raises `NotFound`."""
        return await run_sync(self._repository.enable, user_id)

    async def remove(self, user_id: str) -> None:
        """Forget name and password, and delete what was said: conversations, feedback, preferences.

        What others may build on stays: adapters, which all may use, with their jobs and data. Raises `NotFound`.
        """
        await run_sync(self._repository.remove, user_id, time.time())
        await run_sync(self._sessions.delete_all, user_id)
        await run_sync(self._preferences.remove_all, user_id)

    async def check_password(self, name: str, password: str) -> User:
        """The user who has both. Raises `Unauthorized`, in the same words and after the same time whatever is wrong."""
        name = name.strip().lower()
        found = await run_sync(self._repository.find_by_name, name) if _NAME.fullmatch(name) else None
        right = await self._passwords.verify(None if found is None else found[1], password)
        if found is None or not right or found[0].state != "active":
            raise Unauthorized(_WRONG, code="invalid_login")
        return found[0]


class LoginService:
    """Tokens: given for a password, looked at with every request, taken back."""

    def __init__(
        self, users: UserService, repository: UserRepository, signer: TokenSigner, attempts: LoginAttempts
    ) -> None:
        self._users = users
        self._repository = repository
        self._signer = signer
        self._attempts = attempts
        self._places = Places(MAX_WAITING, "attempts to sign in")

    async def login(self, name: str, password: str, address: str | None) -> SignedIn:
        """A token for whoever knows the password.

        Raises `Unauthorized`, `RateLimited` after too many attempts, `Overloaded` while too many others try.
        """
        user = await self._check(name, password, address)
        token, text = self._signer.make(user.id, user.generation)
        return SignedIn(text, token, user)

    async def change_password(self, user_id: str, old: str, new: str, address: str | None) -> SignedIn:
        """The user's own change, and a token in place of those that end by it.

        Raises `Unauthorized` for a wrong old one, `InvalidRequest` for an unusable new one, and as `login`.
        """
        user = await self._check((await self._users.get(user_id)).name, old, address)
        user = await self._users.set_password(user.id, new)
        token, text = self._signer.make(user.id, user.generation)
        return SignedIn(text, token, user)

    async def _check(self, name: str, password: str, address: str | None) -> User:
        await self._attempts.admit(name.strip().lower(), address)
        with self._places.one():
            return await self._users.check_password(name, password)

    async def logout(self, token: AccessToken) -> None:
        """Refuse the token from now on."""
        await run_sync(self._repository.revoke_token, token.id, token.expires_at)
        await run_sync(self._repository.forget_expired_tokens, time.time())

    async def caller(self, text: str) -> Caller:
        """Whose token this is. Raises `Unauthorized`, in the same words whatever is wrong with it."""
        token = self._signer.read(text)
        user = await self._living(token)
        return Caller(user.id, None, user.role, user.limits, token)

    async def require_active(self, token: AccessToken) -> None:
        """Raise `Unauthorized` where a token that was let in before has ended since."""
        if token.expires_at <= time.time():
            raise Unauthorized(UNAUTHORIZED)
        await self._living(token)

    async def _living(self, token: AccessToken) -> User:
        user = await run_sync(self._find, token)
        if user is None or user.state != "active" or user.generation != token.generation:
            raise Unauthorized(UNAUTHORIZED)
        return user

    def _find(self, token: AccessToken) -> User | None:
        return None if self._repository.is_revoked(token.id) else self._repository.find(token.user_id)


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no user {name[:80]!r}; `mini-claude users list` shows them.", code="user_not_found")
