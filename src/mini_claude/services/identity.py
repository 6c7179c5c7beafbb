"""Who is asking, and what only some may do."""

from dataclasses import dataclass
from typing import Final

from mini_claude.data.records import NO_LIMITS, KeyRole, Limits
from mini_claude.errors import Forbidden
from mini_claude.services.tokens import AccessToken

LOCAL_OWNER = "local"  # no key id looks like this: those are 32 hexadecimal digits
_ADMIN_ONLY: Final = (
    "This manages the server for everybody, which only an admin may; you are a user. Whoever runs the server makes "
    "an admin's key with `mini-claude keys create NAME --role admin`."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """`owner` is whose sessions these are: the user's id, the key's, or "local" where neither is needed.

    `limits` are the owner's. One of `key_id` and `token` says how a caller got in that is not local.
    """

    owner: str
    key_id: str | None
    role: KeyRole = "user"
    limits: Limits = NO_LIMITS
    token: AccessToken | None = None

    @property
    def is_local(self) -> bool:
        """Whether this one got in without saying who it is."""
        return self.owner == LOCAL_OWNER

    @property
    def is_admin(self) -> bool:
        """Whether this one may manage what is everybody's."""
        return self.role == "admin"


LOCAL = Caller(LOCAL_OWNER, None, "admin")


def require_admin(caller: Caller) -> Caller:
    """The caller again. Raises `Forbidden` unless it is an admin."""
    if not caller.is_admin:
        raise Forbidden(_ADMIN_ONLY, code="admin_only")
    return caller
