"""Which host of several that share the database runs a job or writes a reply. From before, there is one."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"


def upgrade() -> None:
    """To this version."""
    for table in ("turns", "jobs"):
        with op.batch_alter_table(table) as changed:
            changed.add_column(sa.Column("host", sa.String(32)))
