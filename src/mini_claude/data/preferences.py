"""Pairs of answers of which somebody preferred one."""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import delete, func, insert, select, tuple_
from sqlalchemy.orm import Session

from mini_claude.data.database import Database, mark_for_erasing
from mini_claude.data.records import Answer, Preference
from mini_claude.data.tables import PreferenceRow
from mini_claude.errors import Conflict, NotFound
from mini_claude.types import Message


class PreferenceRepository:
    """Rows of `preferences`. What belongs to another owner does not exist (`NotFound`)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, preference: Preference, max_preferences: int) -> None:
        """Store it. Raises `Conflict` where its owner has so many already."""
        with self._database.write(alone=True) as session:
            own = select(func.count()).where(PreferenceRow.owner == preference.owner)
            if (session.scalar(own) or 0) >= max_preferences:
                raise Conflict(
                    f"{max_preferences} preferences are stored already: make a dataset of them and remove some.",
                    code="too_many_preferences",
                )
            session.execute(insert(PreferenceRow).values(asdict(preference)))

    def list(self, owner: str, limit: int, before: str | None = None) -> Sequence[Preference]:
        """Newest first; `before` is the id of the last one on the previous page. Raises `NotFound` for that."""
        with self._database.read() as session:
            query = select(PreferenceRow).where(PreferenceRow.owner == owner)
            place = tuple_(PreferenceRow.created_at, PreferenceRow.id)
            if before is not None:
                last = _own(session, owner, before, param="before")
                query = query.where(place < tuple_(last.created_at, last.id))
            newest_first = query.order_by(PreferenceRow.created_at.desc(), PreferenceRow.id.desc())
            return tuple(_preference(row) for row in session.scalars(newest_first.limit(limit)))

    def remove(self, owner: str, preference_id: str) -> None:
        """Raises `NotFound`."""
        with self._database.write() as session:
            _own(session, owner, preference_id)
            session.execute(delete(PreferenceRow).where(PreferenceRow.id == preference_id))
            mark_for_erasing(session)

    def remove_all(self, owner: str) -> None:
        """Delete everything of the owner's."""
        with self._database.write() as session:
            session.execute(delete(PreferenceRow).where(PreferenceRow.owner == owner))
            mark_for_erasing(session)


def _own(session: Session, owner: str, preference_id: str, *, param: str = "preference_id") -> PreferenceRow:
    row = session.scalar(select(PreferenceRow).where(PreferenceRow.id == preference_id, PreferenceRow.owner == owner))
    if row is None:
        raise NotFound("There is no such preference.", code="preference_not_found", param=param)
    return row


def _preference(row: PreferenceRow) -> Preference:
    return Preference(
        id=row.id,
        owner=row.owner,
        messages=tuple(Message(**message) for message in row.messages),
        chosen=Answer(**row.chosen),
        rejected=Answer(**row.rejected),
        blind=row.blind,
        created_at=row.created_at,
    )
