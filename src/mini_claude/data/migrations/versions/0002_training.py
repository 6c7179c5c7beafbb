"""Datasets, training jobs with their events, and versions of adapters."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False, index=True),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("file_name", sa.String(200), nullable=False),
        sa.Column("container", sa.String(16), nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("num_rows", sa.Integer, nullable=False),
        sa.Column("num_broken", sa.Integer, nullable=False),
        sa.Column("problems", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("dataset_sha256", sa.String(64), nullable=False, index=True),
        sa.Column("idempotency_key", sa.String(128)),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("token", sa.String(32)),
        sa.Column("pid", sa.Integer),
        sa.Column("pid_started", sa.Double),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("adapter", sa.String(200)),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_key"),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id", name="fk_job_events_job"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "adapters",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("folder", sa.String(32), nullable=False, unique=True),
        sa.Column("job_id", sa.String(32), unique=True),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("certificate", sa.JSON),
        sa.Column("created_at", sa.Double, nullable=False),
    )
