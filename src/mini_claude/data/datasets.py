"""Stored datasets, by name. Their files lie elsewhere (dataset_store.py), under the hash of their content."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, cast

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from mini_claude.data.database import Database
from mini_claude.data.records import Dataset
from mini_claude.data.tables import DatasetRow, JobRow
from mini_claude.errors import Conflict, NotFound
from mini_claude.training.examples import Container, DatasetFormat, RowProblem

_USES: Final = ("pending", "running", "interrupted")  # states in which a job still reads its data


class DatasetRepository:
    """Rows of `datasets`. A name is taken for everybody, but to others than its owner it does not exist."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, dataset: Dataset) -> tuple[Dataset, bool]:
        """Store a dataset, and whether it is new: the same content under the same name is what was there before.

        Raises `Conflict` when the name is taken by something else.
        """
        with self._database.write(alone=True) as session:
            known = session.get(DatasetRow, dataset.name)
            if known is None:
                session.execute(insert(DatasetRow).values(asdict(dataset)))
                return dataset, True
            if (known.owner, known.sha256) == (dataset.owner, dataset.sha256):
                return _dataset(known), False
        raise Conflict(
            f"The name {dataset.name!r} is taken by another dataset; choose another name, or delete that one first.",
            code="dataset_exists",
            param="name",
        )

    def list(self, owner: str) -> Sequence[Dataset]:
        """The owner's datasets by name."""
        with self._database.read() as session:
            rows = session.scalars(select(DatasetRow).where(DatasetRow.owner == owner).order_by(DatasetRow.name))
            return tuple(_dataset(row) for row in rows)

    def find(self, owner: str, name: str) -> Dataset:
        """One dataset. Raises `NotFound`."""
        with self._database.read() as session:
            return _dataset(_own(session, owner, name))

    def remove(self, owner: str, name: str) -> str | None:
        """Take a dataset out; its hash when no other name leads to the same content.

        Raises `NotFound`, and `Conflict` while a job that has not ended reads it.
        """
        with self._database.write(alone=True) as session:
            row = _own(session, owner, name)
            others = select(DatasetRow.name).where(DatasetRow.sha256 == row.sha256, DatasetRow.name != name)
            shared = session.scalar(others.limit(1)) is not None
            jobs = select(JobRow.id).where(JobRow.dataset_sha256 == row.sha256, JobRow.state.in_(_USES))
            # Somebody else's job keeps the content, which stays where it has another name, and not our name for it.
            used = session.scalar((jobs.where(JobRow.owner == owner) if shared else jobs).limit(1))
            if used is not None:
                raise Conflict(
                    f"A training job that has not ended uses the dataset {name!r}; cancel it first or let it end.",
                    code="dataset_in_use",
                    param="name",
                )
            session.execute(delete(DatasetRow).where(DatasetRow.name == name))
            return None if shared else row.sha256

    def stored_bytes(self, *, besides: str) -> int:
        """Bytes of all stored contents, each counted once, without the one of that hash."""
        contents = select(DatasetRow.sha256, DatasetRow.num_bytes).where(DatasetRow.sha256 != besides).distinct()
        with self._database.read() as session:
            return int(session.scalar(select(func.sum(contents.subquery().c.num_bytes))) or 0)


def _own(session: Session, owner: str, name: str) -> DatasetRow:
    row = None if "\0" in name else session.get(DatasetRow, name)  # PostgreSQL knows no NUL
    if row is None or row.owner != owner:
        raise NotFound(
            f"There is no dataset {name[:80]!r}; `mini-claude datasets list` or GET /api/v1/datasets shows the names.",
            code="dataset_not_found",
            param="name",
        )
    return row


def _dataset(row: DatasetRow) -> Dataset:
    problems: Sequence[dict[str, Any]] = row.problems
    return Dataset(
        name=row.name,
        owner=row.owner,
        sha256=row.sha256,
        file_name=row.file_name,
        container=cast(Container, row.container),
        format=cast(DatasetFormat, row.format),
        num_bytes=row.num_bytes,
        num_rows=row.num_rows,
        num_broken=row.num_broken,
        problems=tuple(RowProblem(**problem) for problem in problems),
        created_at=row.created_at,
    )
