"""Feedback on replies."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "feedback",
        sa.Column("reply_id", sa.String(32), sa.ForeignKey("turns.id", name="fk_feedback_reply"), primary_key=True),
        sa.Column("rating", sa.String(16)),
        sa.Column("correction", sa.Text),
        sa.Column("updated_at", sa.Double, nullable=False),
    )
