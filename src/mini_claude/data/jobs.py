"""Stored training jobs and their events. Every change of a job and the event that tells of it are one transaction.

A trainer works under a token. Whoever starts one makes a new token, so that a trainer that was believed dead, or came
up late, finds its token outdated and can change nothing any more.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, cast

import msgspec
from sqlalchemy import ColumnElement, func, insert, or_, select, true
from sqlalchemy.orm import Session

from mini_claude.data.database import Database
from mini_claude.data.records import Job, JobEvent, JobState
from mini_claude.data.tables import DatasetRow, JobEventRow, JobRow
from mini_claude.errors import Conflict, ErrorInfo, IdempotencyKeyReused, NotFound, TrainerOutdated
from mini_claude.training.arguments import JobSpec

MAX_ATTEMPTS: Final = 5  # trainers that die in a row without a checkpoint in between
ENDED: Final = ("completed", "failed", "cancelled")
WAITING: Final = ("pending", "interrupted")


class JobRepository:
    """Rows of `jobs` and `job_events`, one transaction a call, and one at a time in all processes.

    What belongs to another owner is `NotFound`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- for clients ---

    def submit(self, owner: str, spec: JobSpec, body_sha256: str, key: str | None) -> tuple[Job, bool]:
        """Store a new pending job, and whether it is new: the same key again gives the job of the first time.

        Raises `IdempotencyKeyReused` when that job was another request's, `NotFound` when the data is gone.
        """
        now = time.time()
        with self._database.write(alone=True) as session:
            query = select(JobRow).where(JobRow.owner == owner, JobRow.idempotency_key == key)
            if key is not None and (known := session.scalar(query)) is not None:
                if known.body_sha256 != body_sha256:
                    raise IdempotencyKeyReused(
                        "This Idempotency-Key was used with another body; use a new key for a new job.",
                        param="Idempotency-Key",
                    )
                return _job(known), False
            _require_data(session, owner, spec.dataset_sha256)
            row = JobRow(
                id=uuid.uuid4().hex,
                owner=owner,
                state="pending",
                spec=asdict(spec),
                dataset_sha256=spec.dataset_sha256,
                idempotency_key=key,
                body_sha256=body_sha256,
                created_at=now,
                attempts=0,
                cancel_requested=False,
                progress={},
            )
            session.add(row)
            session.flush()
            _tell(session, row, "state", {"state": "pending"})
            return _job(row), True

    def get(self, owner: str, job_id: str) -> Job:
        """One job."""
        with self._database.read() as session:
            return _job(_own(session, owner, job_id))

    def list(self, owner: str, limit: int) -> Sequence[Job]:
        """Newest first."""
        with self._database.read() as session:
            query = select(JobRow).where(JobRow.owner == owner)
            rows = session.scalars(query.order_by(JobRow.created_at.desc(), JobRow.id).limit(limit))
            return tuple(_job(row) for row in rows)

    def events(self, owner: str, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
        """Events with a number above `after`, in order."""
        with self._database.read() as session:
            _own(session, owner, job_id)
            query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.number > after)
            rows = session.scalars(query.order_by(JobEventRow.number).limit(limit))
            return tuple(JobEvent(row.number, row.type, row.data, row.created_at) for row in rows)

    def cancel(self, owner: str, job_id: str) -> Job:
        """End a waiting job, or ask the trainer of a running one to end it. Raises `Conflict` when it has ended."""
        with self._database.write(alone=True) as session:
            row = _own(session, owner, job_id)
            if row.state in ENDED:
                raise Conflict(f"This job is {row.state}; only one that waits or runs can be cancelled.")
            if row.state in WAITING:
                _end(session, row, "cancelled")
            elif not row.cancel_requested:
                row.cancel_requested = True
                _tell(session, row, "cancel_requested", {})
            return _job(row)

    def resume(self, owner: str, job_id: str) -> Job:
        """Let a failed or cancelled job go on from its last checkpoint. Raises `Conflict` for any other, and
        `NotFound` when its data is gone."""
        with self._database.write(alone=True) as session:
            row = _own(session, owner, job_id)
            if row.state not in ("failed", "cancelled"):
                raise Conflict(f"This job is {row.state}; only a failed or cancelled one can be resumed.")
            _require_data(session, owner, row.dataset_sha256)
            row.attempts, row.cancel_requested, row.error, row.ended_at = 0, False, None, None
            row.state, row.host = "pending", None
            _tell(session, row, "state", {"state": "pending", "reason": "resumed"})
            return _job(row)

    # --- for the supervisor; `host` None: the database is this one's alone ---

    def claim(self, max_running: int, host: str | None = None, has_data: Callable[[str], bool] = bool) -> Job | None:
        """The next waiting job, now running under a new token; None while `max_running` run here or none waits.

        A job that was begun goes on first, where its checkpoints are. Any other may begin wherever `has_data`, given
        the hash of its dataset, says so; owners take turns, each with its oldest.
        """
        with self._database.write(alone=True) as session:
            running = session.scalar(select(func.count()).where(JobRow.state == "running", _here(host))) or 0
            if running >= max_running:
                return None
            waiting = _in_turn(session, host)
            row = next((each for each in waiting if each.host == host or has_data(each.dataset_sha256)), None)
            if row is None:
                return None
            row.host = host
            row.state, row.token, row.attempts = "running", uuid.uuid4().hex, row.attempts + 1
            row.pid = row.pid_started = None
            row.started_at = row.started_at or time.time()
            _tell(session, row, "state", {"state": "running", "attempt": row.attempts})
            return _job(row)

    def running(self, host: str | None = None) -> Sequence[Job]:
        """Everybody's jobs that run here."""
        with self._database.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.state == "running", _here(host)))
            return tuple(_job(row) for row in rows)

    def any_open(self, host: str | None = None) -> bool:
        """Whether a job runs here, or waits and may run here."""
        with self._database.read() as session:
            query = select(JobRow.id).where(JobRow.state.not_in(ENDED), _here(host)).limit(1)
            return session.scalar(query) is not None

    def version(self) -> tuple[int, ...] | None:
        """See `Database.version`."""
        return self._database.version()

    def interrupt(self, job_id: str, token: str, reason: str, *, by_itself: bool = True) -> None:
        """The trainer under that token is gone. The job waits for the next one, fails when too many have died
        `by_itself` (and not with the machine), and is cancelled when that was asked for. An outdated token changes
        nothing."""
        with self._database.write(alone=True) as session:
            row = session.get(JobRow, job_id)
            if row is None or row.state != "running" or row.token != token:
                return
            row.token = row.pid = row.pid_started = None
            row.attempts -= not by_itself
            if row.cancel_requested:
                _end(session, row, "cancelled")
            elif row.attempts >= MAX_ATTEMPTS:
                message = f"{reason} That was attempt {row.attempts} without a new checkpoint; the log says more."
                _end(session, row, "failed", ("InternalError", ErrorInfo("trainer_died", message)))
            else:
                row.state = "interrupted"
                _tell(session, row, "state", {"state": "interrupted", "reason": reason})

    # --- for the trainer ---

    def begin(self, job_id: str, token: str, pid: int, pid_started: float) -> Job:
        """The trainer is up. Raises `TrainerOutdated`, as everything below, when its token is not the job's."""
        with self._database.write(alone=True) as session:
            row = _held(session, job_id, token)
            row.pid, row.pid_started = pid, pid_started
            _tell(session, row, "trainer_started", {"attempt": row.attempts})
            return _job(row)

    def append(self, job_id: str, token: str, kind: str, data: dict[str, Any]) -> bool:
        """Store an event; returns whether somebody has asked for the job to be cancelled."""
        with self._database.write(alone=True) as session:
            row = _held(session, job_id, token)
            if kind == "progress":
                row.progress = data
            if kind == "checkpoint":
                row.attempts = 1
            _tell(session, row, kind, data)
            return row.cancel_requested

    def cancel_requested(self, job_id: str, token: str) -> bool:
        """Whether somebody has asked for the job to be cancelled."""
        with self._database.read() as session:
            return _held(session, job_id, token).cancel_requested

    def finish(
        self,
        job_id: str,
        token: str,
        state: JobState,
        error: tuple[str, ErrorInfo] | None = None,
        adapter: str | None = None,
    ) -> None:
        """The job's last event."""
        with self._database.write(alone=True) as session:
            row = _held(session, job_id, token)
            row.adapter = adapter
            _end(session, row, state, error)


def _in_turn(session: Session, host: str | None) -> Sequence[JobRow]:
    """Jobs that wait and may run here: those that were begun, then those of whoever's last turn is the longest ago."""
    query = select(JobRow).where(JobRow.state.in_(WAITING), _here(host))
    waiting = session.scalars(query.order_by(JobRow.created_at, JobRow.id)).all()
    if len({row.owner for row in waiting}) < 2:
        return waiting
    turns = session.execute(select(JobRow.owner, func.max(JobRow.started_at)).group_by(JobRow.owner))
    last = {owner: started or 0.0 for owner, started in turns}
    return sorted(waiting, key=lambda row: -1.0 if row.started_at is not None else last[row.owner])


def _here(host: str | None) -> ColumnElement[bool]:
    return true() if host is None else or_(JobRow.host == host, JobRow.host.is_(None))


def _require_data(session: Session, owner: str, sha256: str) -> None:
    """In the transaction that makes a job: from then on the dataset cannot be deleted."""
    query = select(DatasetRow.name).where(DatasetRow.owner == owner, DatasetRow.sha256 == sha256).limit(1)
    if session.scalar(query) is None:
        raise NotFound("The dataset was deleted; upload it again.", code="dataset_not_found", param="dataset_path")


def _end(session: Session, row: JobRow, state: JobState, error: tuple[str, ErrorInfo] | None = None) -> None:
    row.state, row.ended_at = state, time.time()
    row.token = row.pid = row.pid_started = None
    data: dict[str, Any] = {"state": state}
    if error is not None:
        row.error = {"kind": error[0], **asdict(error[1])}
        data["error"] = {"code": error[1].code, "message": error[1].message}
    if row.adapter is not None:
        data["adapter"] = row.adapter
    _tell(session, row, "state", data)


def _tell(session: Session, row: JobRow, kind: str, data: dict[str, Any]) -> None:
    last = session.scalar(select(func.max(JobEventRow.number)).where(JobEventRow.job_id == row.id)) or 0
    values = {"job_id": row.id, "number": last + 1, "type": kind, "data": data, "created_at": time.time()}
    session.execute(insert(JobEventRow).values(values))


def _own(session: Session, owner: str, job_id: str) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None or row.owner != owner:
        raise NotFound("There is no such job.", code="job_not_found", param="job_id")
    return row


def _held(session: Session, job_id: str, token: str) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None or row.state != "running" or row.token != token:
        raise TrainerOutdated("Another trainer has taken this job over, or it has ended.")
    return row


def _job(row: JobRow) -> Job:
    error = None
    if row.error is not None:
        known = dict(row.error)
        error = (str(known.pop("kind")), ErrorInfo(**known))
    return Job(
        id=row.id,
        owner=row.owner,
        state=cast(JobState, row.state),
        spec=msgspec.convert(row.spec, JobSpec),
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        attempts=row.attempts,
        token=row.token,
        pid=row.pid,
        pid_started=row.pid_started,
        cancel_requested=row.cancel_requested,
        progress=dict(row.progress),
        error=error,
        adapter=row.adapter,
    )
