"""From every version there was to today's, with rows in every table of that version, on both databases."""

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import JSON, Boolean, Column, Double, Integer, MetaData, Select, String, Table, Text, select, text

from mini_claude.data.database import Database
from mini_claude.data.sessions import SessionRepository
from mini_claude.data.tables import Base

from .migrating import migrate_to, revisions

NUM_ROWS = 3


@pytest.fixture
def empty(any_url: str) -> Iterator[Database]:
    database = Database(any_url)
    yield database
    database.close()


def value_of(column: Column[Any], number: int) -> object:
    """Something that fits the column, another one in each row. What leads to another row leads to the same number."""
    if isinstance(column.type, JSON):
        return {"number": [number, None, "é\0"]}
    if isinstance(column.type, Boolean):
        return number % 2 == 0
    if isinstance(column.type, Double):
        return number + 0.5
    if isinstance(column.type, Integer):
        return number
    assert isinstance(column.type, String | Text), column
    return f"{number}"


def tables_of(database: Database) -> list[Table]:
    """As they are in the database, those that others lead to first."""
    found = MetaData()
    with database.read() as session:
        found.reflect(session.connection())
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def rows_of(database: Database, query: Select[Any]) -> list[dict[str, object]]:
    with database.read() as session:
        return [dict(row._mapping) for row in session.execute(query)]


def ordered(table: Table) -> Select[Any]:
    return select(table).order_by(*table.primary_key.columns)


@pytest.mark.parametrize("revision", revisions())
def test_every_row_of_every_version_is_kept_and_the_tables_become_those_of_the_code(
    empty: Database, revision: str
) -> None:
    migrate_to(empty, revision)
    before = tables_of(empty)
    with empty.write() as session:
        for table in before:
            for number in range(1, NUM_ROWS + 1):
                session.execute(table.insert().values({c.name: value_of(c, number) for c in table.columns}))
    stored = {table.name: rows_of(empty, ordered(table)) for table in before}
    assert stored
    empty.migrate()
    after = {table.name: table for table in tables_of(empty)}
    for name, rows in stored.items():
        now = rows_of(empty, ordered(after[name]))
        assert [{key: row[key] for key in rows[0]} for row in now] == rows
    with empty.read() as session:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(session.connection(), opts=options)
        assert compare_metadata(context, Base.metadata) == []
    empty.migrate()  # a second time changes nothing
    assert len(rows_of(empty, ordered(after["api_keys"]))) == NUM_ROWS


def test_a_conversation_of_the_first_version_reads_as_it_was_and_goes_on(empty: Database) -> None:
    migrate_to(empty, revisions()[0])
    turns = "id, session_id, parent_id, position, role, content, status, created_at, delta_ends, dropped_turn_ids"
    with empty.write() as session:
        session.execute(text("INSERT INTO sessions VALUES ('s', 'me', 'Größe', NULL, 'Be kind.', 't2', 1.5, 2.5)"))
        for row in ("'t1', 's', NULL, 0, 'user', 'Hi', 'done', 1", "'t2', 's', 't1', 1, 'assistant', 'Yo', 'done', 2"):
            session.execute(text(f"INSERT INTO turns ({turns}) VALUES ({row}, '[2]', '[]')"))
    empty.migrate()
    sessions = SessionRepository(empty)
    session_, path = sessions.branch("me", "s", None)
    assert (session_.title, session_.system, session_.updated_at) == ("Größe", "Be kind.", 2.5)
    assert [(turn.content, turn.delta_ends, turn.host) for turn in path] == [("Hi", (2,), None), ("Yo", (2,), None)]
    assert sessions.rename("me", "s", "other").title == "other"
    sessions.delete("me", "s")
    assert sessions.list("me", 10) == ()
