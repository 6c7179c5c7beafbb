"""People who sign in with a name and a password, and tokens that were given back before their end."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

LIMITS = (
    *("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day"),
    "concurrent_replies",
)


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "users",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(64), unique=True),
        sa.Column("password_hash", sa.String(200), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("disabled_at", sa.Double),
        *(sa.Column(name, sa.BigInteger) for name in LIMITS),
    )
    op.create_table(
        "revoked_tokens",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("expires_at", sa.Double, nullable=False, index=True),
    )
