"""Which host of several that share the database runs a job or writes a reply. From before, there is one.

References of models and names of folders lose their length, which SQLite never looked at and PostgreSQL refused.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

REFERENCES = (("sessions", "model"), ("turns", "model"), ("adapters", "folder"))


def upgrade() -> None:
    """To this version."""
    for table in ("turns", "jobs"):
        with op.batch_alter_table(table) as changed:
            changed.add_column(sa.Column("host", sa.String(32)))
    if op.get_context().dialect.name == "postgresql":
        for table, column in REFERENCES:
            op.alter_column(table, column, type_=sa.String)
