"""How much an API key may ask for. The keys there are have no limits of their own: the settings' hold for them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

LIMITS = (
    *("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day"),
    "concurrent_replies",
)


def upgrade() -> None:
    """To this version."""
    with op.batch_alter_table("api_keys") as keys:
        for name in LIMITS:
            keys.add_column(sa.Column(name, sa.BigInteger))
