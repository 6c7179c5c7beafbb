"""The tables, as SQLAlchemy sees them. Migrations create them; a test compares the two."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ID = String(32)  # uuid4, hexadecimal
NAME = String(200)
REFERENCE = String()  # model:adapter@version, or a folder's name; PostgreSQL, unlike SQLite, holds to a length


class Base(DeclarativeBase):
    """Registry of all tables."""


class LimitColumns:
    """A caller's own limits."""

    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    requests_per_day: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    concurrent_replies: Mapped[int | None] = mapped_column(BigInteger)


class ApiKeyRow(LimitColumns, Base):
    """An API key: its SHA-256, never the key. Rows are revoked, not deleted."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME)
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Double)
    role: Mapped[str] = mapped_column(String(16))
    expires_at: Mapped[float | None] = mapped_column(Double)
    revoked_at: Mapped[float | None] = mapped_column(Double)


class UserRow(LimitColumns, Base):
    """Somebody with a password. A row is never deleted, so that the door stays shut; who was removed has no name.

    `generation` counts what ends all tokens: a new password, an end of the right to sign in.
    """

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str | None] = mapped_column(String(64), unique=True)
    password_hash: Mapped[str] = mapped_column(NAME)
    role: Mapped[str] = mapped_column(String(16))
    generation: Mapped[int]
    created_at: Mapped[float] = mapped_column(Double)
    disabled_at: Mapped[float | None] = mapped_column(Double)


class RevokedTokenRow(Base):
    """A token that was given back; the row may go when the token has expired."""

    __tablename__ = "revoked_tokens"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    expires_at: Mapped[float] = mapped_column(Double, index=True)


class ModelRow(Base):
    """A catalog entry that an administrator added."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    family: Mapped[str] = mapped_column(String(32))
    sources: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    description: Mapped[str] = mapped_column(Text)
    license: Mapped[str] = mapped_column(NAME)
    created_at: Mapped[float] = mapped_column(Double)


class SessionRow(Base):
    """A conversation. `head_turn_id` has no foreign key: sessions and turns would need each other to exist."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner: Mapped[str] = mapped_column(ID, index=True)
    title: Mapped[str] = mapped_column(NAME)
    model: Mapped[str | None] = mapped_column(REFERENCE)
    system: Mapped[str | None] = mapped_column(Text)
    head_turn_id: Mapped[str | None] = mapped_column(ID)
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)


class TurnRow(Base):
    """A node in the tree of a session. `position` is its place among the session's turns, from 0; `host` wrote a reply.

    `parent_id` does not cascade: SQLite stops a cascade that is 1,000 turns deep, and a conversation can be deeper.
    """

    __tablename__ = "turns"
    __table_args__ = (UniqueConstraint("session_id", "position", name="uq_turns_session_position"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", name="fk_turns_session"))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("turns.id", name="fk_turns_parent"), index=True)
    position: Mapped[int]
    role: Mapped[str] = mapped_column(String(16))
    content: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Double)
    model: Mapped[str | None] = mapped_column(REFERENCE)
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    cached_tokens: Mapped[int | None]
    delta_ends: Mapped[list[int]] = mapped_column(JSON)
    dropped_turn_ids: Mapped[list[str]] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    host: Mapped[str | None] = mapped_column(ID)


class FeedbackRow(Base):
    """What a session's owner thinks of a reply."""

    __tablename__ = "feedback"

    reply_id: Mapped[str] = mapped_column(ForeignKey("turns.id", name="fk_feedback_reply"), primary_key=True)
    rating: Mapped[str | None] = mapped_column(String(16))
    correction: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[float] = mapped_column(Double)


class PreferenceRow(Base):
    """Two answers to the same messages, of which the owner chose one."""

    __tablename__ = "preferences"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner: Mapped[str] = mapped_column(ID, index=True)
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    chosen: Mapped[dict[str, Any]] = mapped_column(JSON)
    rejected: Mapped[dict[str, Any]] = mapped_column(JSON)
    blind: Mapped[bool]
    created_at: Mapped[float] = mapped_column(Double)


class DefaultModelRow(Base):
    """A choice of the model behind the alias "default"; the newest one holds."""

    __tablename__ = "default_models"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    reference: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(Double)


class DatasetRow(Base):
    """An uploaded dataset under its name; the file lies under its content's hash. Several names may share a file."""

    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(ID, index=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    file_name: Mapped[str] = mapped_column(NAME)
    container: Mapped[str] = mapped_column(String(16))
    format: Mapped[str] = mapped_column(String(32))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    num_rows: Mapped[int]
    num_broken: Mapped[int]
    problems: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Double)


class JobRow(Base):
    """A training job. `token` is the right to run it: whoever starts a trainer makes a new one, which outdates
    every trainer that was started before. `pid` and `pid_started` identify the trainer that holds it, on `host`."""

    __tablename__ = "jobs"
    __table_args__ = (UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_key"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner: Mapped[str] = mapped_column(ID, index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    dataset_sha256: Mapped[str] = mapped_column(String(64), index=True)
    idempotency_key: Mapped[str | None] = mapped_column(String(128))
    body_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Double)
    started_at: Mapped[float | None] = mapped_column(Double)
    ended_at: Mapped[float | None] = mapped_column(Double)
    attempts: Mapped[int]
    token: Mapped[str | None] = mapped_column(ID)
    pid: Mapped[int | None]
    pid_started: Mapped[float | None] = mapped_column(Double)
    cancel_requested: Mapped[bool]
    progress: Mapped[dict[str, Any]] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    host: Mapped[str | None] = mapped_column(ID)
    adapter: Mapped[str | None] = mapped_column(NAME)


class JobEventRow(Base):
    """What happened to a job, numbered from 1 without gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", name="fk_job_events_job"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Double)


class AdapterRow(Base):
    """A version of an adapter: model:name@version. `job_id` is None for an imported one."""

    __tablename__ = "adapters"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(ID)
    folder: Mapped[str] = mapped_column(REFERENCE, unique=True)
    job_id: Mapped[str | None] = mapped_column(ID, unique=True)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)
    certificate: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[float] = mapped_column(Double)
