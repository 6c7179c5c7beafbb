"""Stored versions of adapters."""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import CursorResult, Result, delete, func, insert, select, update
from sqlalchemy.orm import Session

from mini_claude.data.database import Database
from mini_claude.data.records import AdapterVersion
from mini_claude.data.tables import AdapterRow
from mini_claude.errors import Conflict, NotFound


class AdapterRepository:
    """Rows of `adapters`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, owner: str, model: str, name: str, folder: str, facts: dict[str, Any], job_id: str | None
    ) -> AdapterVersion:
        """The next version of model:name. For a job that has registered one already, that one again.

        Raises `Conflict` where model:name is another owner's: whoever asks for its newest version would get this one.
        """
        with self._database.write(alone=True) as session:
            if job_id is not None:
                known = session.scalar(select(AdapterRow).where(AdapterRow.job_id == job_id))
                if known is not None:
                    return _record(known)
            _require_free(session, owner, model, name)
            latest = select(func.max(AdapterRow.version)).where(AdapterRow.model == model, AdapterRow.name == name)
            values: dict[str, Any] = {
                "model": model,
                "name": name,
                "version": (session.scalar(latest) or 0) + 1,
                "owner": owner,
                "folder": folder,
                "job_id": job_id,
                "facts": facts,
                "certificate": None,
                "created_at": time.time(),
            }
            session.execute(insert(AdapterRow).values(values))
            return AdapterVersion(**values)

    def find(self, model: str, name: str, version: int | None) -> AdapterVersion:
        """That version, or the newest. Raises `NotFound`."""
        with self._database.read() as session:
            query = select(AdapterRow).where(AdapterRow.model == model, AdapterRow.name == name)
            if version is not None:
                query = query.where(AdapterRow.version == version)
            row = session.scalar(query.order_by(AdapterRow.version.desc()).limit(1))
            if row is None:
                wanted = f"{model}:{name}" + (f"@{version}" if version is not None else "")
                raise NotFound(f"There is no adapter {wanted!r}.", code="model_not_found", param="model")
            return _record(row)

    def list(self) -> Sequence[AdapterVersion]:
        """All versions by model, name and version."""
        with self._database.read() as session:
            rows = session.scalars(select(AdapterRow).order_by(AdapterRow.model, AdapterRow.name, AdapterRow.version))
            return tuple(_record(row) for row in rows)

    def require_free(self, owner: str, model: str, name: str) -> None:
        """Raise `Conflict` where model:name is another owner's."""
        with self._database.read() as session:
            _require_free(session, owner, model, name)

    def certify(self, version: AdapterVersion, certificate: dict[str, Any]) -> None:
        """Store the certificate of a version, in place of an earlier one. Raises `NotFound` when it is gone."""
        with self._database.write() as session:
            done = session.execute(update(AdapterRow).where(*_is(version)).values(certificate=certificate))
            _require_one(done, version)

    def remove(self, version: AdapterVersion) -> None:
        """Forget a version; its files are the caller's affair. Raises `NotFound` when it is gone."""
        with self._database.write() as session:
            _require_one(session.execute(delete(AdapterRow).where(*_is(version))), version)


def _require_free(session: Session, owner: str, model: str, name: str) -> None:
    query = select(AdapterRow.owner).where(
        AdapterRow.model == model, AdapterRow.name == name, AdapterRow.owner != owner
    )
    if session.scalar(query.limit(1)) is not None:
        raise Conflict(
            f"The name {model}:{name} is another key's; choose another name for the adapter.",
            code="adapter_exists",
            param="name",
        )


def _require_one(done: Result[Any], version: AdapterVersion) -> None:
    assert isinstance(done, CursorResult)
    if done.rowcount == 0:
        raise NotFound(f"There is no adapter {version.reference!r} any more.", code="model_not_found", param="model")


def _is(version: AdapterVersion) -> tuple[Any, ...]:
    """Numbers are given again when the newest version was deleted, folders never."""
    return (
        AdapterRow.folder == version.folder,
        AdapterRow.model == version.model,
        AdapterRow.name == version.name,
        AdapterRow.version == version.version,
    )


def _record(row: AdapterRow) -> AdapterVersion:
    return AdapterVersion(
        model=row.model,
        name=row.name,
        version=row.version,
        owner=row.owner,
        folder=row.folder,
        job_id=row.job_id,
        facts=dict(row.facts),
        certificate=row.certificate,
        created_at=row.created_at,
    )
