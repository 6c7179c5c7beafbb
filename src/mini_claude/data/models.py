"""Catalog entries that an administrator added."""

import time
from collections.abc import Sequence
from typing import cast

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from mini_claude.data.database import Database
from mini_claude.data.tables import ModelRow
from mini_claude.errors import Conflict, NotFound
from mini_claude.types import ModelFamily, ModelSource, ModelSpec, SourceKind


class ModelRepository:
    """Rows of `models`, as `ModelSpec`s."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, spec: ModelSpec) -> None:
        """Raises `Conflict` when the name is taken."""
        sources = [{"kind": source.kind, "location": source.location} for source in spec.sources]
        values = {
            "name": spec.name,
            "family": spec.family,
            "sources": sources,
            "description": spec.description,
            "license": spec.license,
            "created_at": time.time(),
        }
        try:
            with self._database.write() as session:
                session.execute(insert(ModelRow).values(values))
        except IntegrityError as error:
            raise Conflict(
                f"There is a model {spec.name!r} already; remove it first or choose another name."
            ) from error

    def list(self) -> Sequence[ModelSpec]:
        """All added models by name."""
        with self._database.read() as session:
            return tuple(_spec(row) for row in session.scalars(select(ModelRow).order_by(ModelRow.name)))

    def find(self, name: str) -> ModelSpec | None:
        """The added model of that name."""
        with self._database.read() as session:
            row = session.get(ModelRow, name)
            return None if row is None else _spec(row)

    def remove(self, name: str) -> None:
        """Raises `NotFound`."""
        with self._database.write() as session:
            if session.get(ModelRow, name) is None:
                raise NotFound(f"No model {name!r} was added.", code="model_not_found", param="model")
            session.execute(delete(ModelRow).where(ModelRow.name == name))


def _spec(row: ModelRow) -> ModelSpec:
    sources = tuple(ModelSource(cast(SourceKind, each["kind"]), each["location"]) for each in row.sources)
    return ModelSpec(row.name, cast(ModelFamily, row.family), sources, row.description, row.license)
