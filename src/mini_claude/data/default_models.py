"""Which model answers where none is named: the newest choice, and those before it."""

import time
from collections.abc import Sequence

from sqlalchemy import select

from mini_claude.data.database import Database
from mini_claude.data.records import DefaultChoice
from mini_claude.data.tables import DefaultModelRow


class DefaultModelRepository:
    """Rows of `default_models`; nothing is ever taken out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def choose(self, reference: str) -> None:
        """From now on this one."""
        with self._database.write() as session:
            session.add(DefaultModelRow(reference=reference, created_at=time.time()))

    def history(self, limit: int) -> Sequence[DefaultChoice]:
        """Newest first; the first one holds."""
        with self._database.read() as session:
            rows = session.scalars(select(DefaultModelRow).order_by(DefaultModelRow.number.desc()).limit(limit))
            return tuple(DefaultChoice(row.reference, row.created_at) for row in rows)
