"""Stored users: hashes of passwords, and tokens that were revoked."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mini_claude.data.database import Database
from mini_claude.data.keys import limits_of
from mini_claude.data.records import KeyRole, Limits, User
from mini_claude.data.tables import RevokedTokenRow, UserRow
from mini_claude.errors import Conflict, NotFound


class UserRepository:
    """Rows of `users` and `revoked_tokens`. It stores and returns hashes and knows nothing of passwords."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, user: User, password_hash: str) -> None:
        """Raises `Conflict` where the name is taken."""
        values = {name: getattr(user, name) for name in ("id", "name", "role", "generation", "created_at")}
        try:
            with self._database.write() as session:
                session.execute(insert(UserRow).values(**values, **asdict(user.limits), password_hash=password_hash))
        except IntegrityError as error:
            raise Conflict(f"There is a user {user.name!r} already; choose another name.", param="name") from error

    def list(self) -> Sequence[User]:
        """All users, disabled ones too, oldest first."""
        with self._database.read() as session:
            query = select(UserRow).where(UserRow.name.is_not(None)).order_by(UserRow.created_at, UserRow.id)
            return tuple(_record(row) for row in session.scalars(query))

    def find(self, user_id: str) -> User | None:
        """The user of that id, who may be disabled; None also where they were removed."""
        with self._database.read() as session:
            row = session.get(UserRow, user_id)
            return None if row is None or row.name is None else _record(row)

    def find_by_name(self, name: str) -> tuple[User, str] | None:
        """The user of that name with the hash of the password."""
        with self._database.read() as session:
            row = session.scalar(select(UserRow).where(UserRow.name == name))
            return None if row is None else (_record(row), row.password_hash)

    def set_role(self, user_id: str, role: KeyRole) -> User:
        """Let the user be an admin, or none any more. Raises `NotFound`."""
        return self._change(user_id, role=role)

    def set_limits(self, user_id: str, limits: Limits) -> User:
        """Give the user these limits of their own. Raises `NotFound`."""
        return self._change(user_id, **asdict(limits))

    def set_password(self, user_id: str, password_hash: str) -> User:
        """A new password, which ends all tokens. Raises `NotFound`."""
        return self._change(user_id, ends_tokens=True, password_hash=password_hash)

    def disable(self, user_id: str, now: float) -> User:
        """Refuse the user from now on, and all their tokens for ever. Raises `NotFound`."""
        return self._change(user_id, ends_tokens=True, disabled_at=now)

    def enable(self, user_id: str) -> User:
        """Let the user sign in again. Raises `NotFound`."""
        return self._change(user_id, disabled_at=None)

    def remove(self, user_id: str, now: float) -> None:
        """Forget the user's name and password, and free the name. Raises `NotFound`."""
        with self._database.write() as session:
            row = _own(session, user_id)
            row.name, row.password_hash, row.disabled_at = None, "", row.disabled_at or now
            row.generation += 1

    def _change(self, user_id: str, *, ends_tokens: bool = False, **values: Any) -> User:
        with self._database.write() as session:
            row = _own(session, user_id)
            for name, value in values.items():
                setattr(row, name, value)
            row.generation += ends_tokens
            return _record(row)

    # --- tokens ---

    def revoke_token(self, token_id: str, expires_at: float) -> None:
        """Refuse the token from now on; a second time changes nothing."""
        with self._database.write(alone=True) as session:
            if session.get(RevokedTokenRow, token_id) is None:
                session.add(RevokedTokenRow(id=token_id, expires_at=expires_at))

    def is_revoked(self, token_id: str) -> bool:
        """Whether the token was revoked. Of one that has expired that may be forgotten."""
        with self._database.read() as session:
            return session.get(RevokedTokenRow, token_id) is not None

    def forget_expired_tokens(self, now: float) -> None:
        """Delete the rows of tokens that have come to their end by themselves."""
        with self._database.write() as session:
            session.execute(delete(RevokedTokenRow).where(RevokedTokenRow.expires_at <= now))


def _own(session: Session, user_id: str) -> UserRow:
    row = session.get(UserRow, user_id, with_for_update=True)
    if row is None or row.name is None:
        raise NotFound(
            f"There is no user {user_id[:80]!r}; `mini-claude users list` shows them.", code="user_not_found"
        )
    return row


def _record(row: UserRow) -> User:
    return User(
        id=row.id,
        name=row.name or "",
        role=cast(KeyRole, row.role),
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        generation=row.generation,
        limits=limits_of(row),
    )
