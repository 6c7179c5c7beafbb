"""Whether the server is open to whoever is on its machine: what keys and users have in common."""

from typing import Final

from sqlalchemy import exists, or_, select

from mini_claude.data.database import Database
from mini_claude.data.tables import ApiKeyRow, UserRow

_SHUT: Final = select(or_(*(exists(select(row.id)) for row in (ApiKeyRow, UserRow))))


class DoorRepository:
    """Looks at the rows of `api_keys` and `users` together."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def is_shut(self) -> bool:
        """Whether a key or a user was ever made. Ended ones count: the end of the last must not open the server."""
        with self._database.read() as session:
            return bool(session.scalar(_SHUT))

    def version(self) -> tuple[int, ...] | None:
        """See `Database.version`."""
        return self._database.version()

    def has_admin(self, now: float) -> bool:
        """Whether some admin, with a key or a password, gets in at this time."""
        key = select(ApiKeyRow.id).where(
            ApiKeyRow.role == "admin",
            ApiKeyRow.revoked_at.is_(None),
            or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now),
        )
        user = select(UserRow.id).where(UserRow.role == "admin", UserRow.disabled_at.is_(None))
        with self._database.read() as session:
            return any(session.scalar(query.limit(1)) is not None for query in (key, user))
