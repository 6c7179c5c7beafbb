"""What an API key may do, and until when. The keys there are could do everything, for ever: they still can."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """To this version."""
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("role", sa.String(16), nullable=False, server_default="admin"))
        keys.add_column(sa.Column("expires_at", sa.Double))
    with op.batch_alter_table("api_keys") as keys:  # no key is an admin's because somebody forgot to say whose
        keys.alter_column("role", server_default=None)
