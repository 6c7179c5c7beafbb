"""Stored API keys."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

from sqlalchemy import insert, select, update

from mini_claude.data.database import Database
from mini_claude.data.records import ApiKey, KeyRole, Limits
from mini_claude.data.tables import ApiKeyRow, LimitColumns
from mini_claude.errors import NotFound


class KeyRepository:
    """Rows of `api_keys`. It stores and returns hashes and knows nothing of keys as text."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: ApiKey, sha256: str) -> None:
        """Store a new key's record and the hexadecimal SHA-256 of its text."""
        with self._database.write() as session:
            session.execute(
                insert(ApiKeyRow).values(
                    id=key.id,
                    name=key.name,
                    prefix=key.prefix,
                    sha256=sha256,
                    created_at=key.created_at,
                    role=key.role,
                    expires_at=key.expires_at,
                    **asdict(key.limits),
                )
            )

    def list(self) -> Sequence[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))
            return tuple(_record(row) for row in rows)

    def get(self, key_id: str) -> ApiKey:
        """One key. Raises `NotFound`."""
        with self._database.read() as session:
            return _record(_found(session.get(ApiKeyRow, key_id), key_id))

    def revoke(self, key_id: str, now: float) -> None:
        """Mark the key as revoked; a second time changes nothing. Raises `NotFound`."""
        with self._database.write() as session:
            _found(session.get(ApiKeyRow, key_id), key_id)
            session.execute(
                update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=now)
            )

    def set_limits(self, key_id: str, limits: Limits) -> ApiKey:
        """Give the key these limits of its own; the key as it is then. Raises `NotFound`."""
        with self._database.write() as session:
            row = _found(session.get(ApiKeyRow, key_id), key_id)
            for name, value in asdict(limits).items():
                setattr(row, name, value)
            return _record(row)

    def find_by_prefix(self, prefix: str) -> Sequence[tuple[ApiKey, str]]:
        """The keys whose text begins like this, each with its SHA-256."""
        with self._database.read() as session:
            rows = session.scalars(select(ApiKeyRow).where(ApiKeyRow.prefix == prefix))
            return tuple((_record(row), row.sha256) for row in rows)


def _found(row: ApiKeyRow | None, key_id: str) -> ApiKeyRow:
    if row is None:
        raise NotFound(f"There is no key {key_id[:80]!r}; `mini-claude keys list` shows the ids.")
    return row


def _record(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        created_at=row.created_at,
        role=cast(KeyRole, row.role),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        limits=limits_of(row),
    )


def limits_of(row: LimitColumns) -> Limits:
    """The limits in a row."""
    return Limits(
        requests_per_minute=row.requests_per_minute,
        requests_per_day=row.requests_per_day,
        tokens_per_minute=row.tokens_per_minute,
        tokens_per_day=row.tokens_per_day,
        concurrent_replies=row.concurrent_replies,
    )
