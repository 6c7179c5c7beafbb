"""Stored conversations: sessions and their trees of turns. Nothing in a tree is ever overwritten."""

import time
from collections.abc import Sequence
from typing import Any, Final, cast

from sqlalchemy import Select, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.orm import Session

from mini_claude.data.database import Database, mark_for_erasing
from mini_claude.data.lower import Lower
from mini_claude.data.records import ChatSession, Conversation, ReplyEnding, Turn, TurnRole, TurnStatus
from mini_claude.data.tables import FeedbackRow, SessionRow, TurnRow
from mini_claude.errors import ErrorInfo, NotFound
from mini_claude.types import Usage

LOST_SECONDS: Final = 86_400.0  # no reply takes so long


class SessionRepository:
    """Rows of `sessions` and `turns`, one transaction a call.

    Every call that names a session or a turn for somebody takes the owner: what belongs to another owner does not
    exist (`NotFound`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, owner: str, limit: int, before: str | None = None, text: str | None = None) -> Sequence[ChatSession]:
        """Most recently used first; `before` is the id of the last one on the previous page.

        With `text` only those in whose title or turns it occurs, in upper or lower case.
        """
        with self._database.read() as session:
            query = select(SessionRow).where(SessionRow.owner == owner)
            if before is not None:
                last = own_session(session, owner, before, param="before")
                query = query.where(tuple_(SessionRow.updated_at, SessionRow.id) < tuple_(last.updated_at, last.id))
            if text is not None:
                folded = text.lower()
                said = select(TurnRow.session_id).where(Lower(TurnRow.content).contains(folded, autoescape=True))
                titled = Lower(SessionRow.title).contains(folded, autoescape=True)
                query = query.where(or_(titled, SessionRow.id.in_(said)))
            rows = session.scalars(query.order_by(SessionRow.updated_at.desc(), SessionRow.id.desc()).limit(limit))
            return tuple(_session(row) for row in rows)

    def conversation(self, owner: str, session_id: str) -> Conversation:
        """The session with every turn of every branch."""
        with self._database.read() as session:
            row = own_session(session, owner, session_id)
            turns = session.scalars(select(TurnRow).where(TurnRow.session_id == session_id).order_by(TurnRow.position))
            return Conversation(_session(row), tuple(_turn(each) for each in turns))

    def branch(self, owner: str, session_id: str, leaf_id: str | None) -> tuple[ChatSession, tuple[Turn, ...]]:
        """The session and the turns from the root to `leaf_id`. None: to the head; "": before the first turn."""
        with self._database.read() as session:
            row = own_session(session, owner, session_id)
            leaf = row.head_turn_id if leaf_id is None else leaf_id
            if not leaf:
                return _session(row), ()
            step = (
                select(TurnRow.id, TurnRow.parent_id)
                .where(TurnRow.id == leaf, TurnRow.session_id == session_id)
                .cte("step", recursive=True)
            )
            step = step.union_all(select(TurnRow.id, TurnRow.parent_id).where(TurnRow.id == step.c.parent_id))
            # A parent is always older than its children, so the order of beginning is the order of the path.
            query = select(TurnRow).where(TurnRow.id.in_(select(step.c.id))).order_by(TurnRow.position)
            path = tuple(_turn(each) for each in session.scalars(query))
            if not path:
                raise NotFound("There is no such turn in this session.", code="turn_not_found")
            return _session(row), path

    def begin(
        self,
        owner: str,
        turns: Sequence[Turn],
        *,
        create: ChatSession | None = None,
        model: str | None = None,
        system: str | None = None,
    ) -> None:
        """Store the turns of a reply that was accepted, all of one session, and with `create` that session first.

        `model` and `system` become the session's where given. The head stays. Raises `NotFound` when the session
        has been deleted in the meantime.
        """
        session_id = turns[0].session_id
        changes = {"updated_at": time.time(), "model": model, "system": system}
        with self._database.write() as session:
            if create is not None:
                session.execute(insert(SessionRow).values(_session_values(create)))
            own_session(session, owner, session_id, lock=True)
            given = {name: value for name, value in changes.items() if value is not None}
            session.execute(update(SessionRow).where(SessionRow.id == session_id).values(given))
            last = session.scalar(select(func.max(TurnRow.position)).where(TurnRow.session_id == session_id))
            first = 0 if last is None else last + 1
            for position, turn in enumerate(turns, first):
                session.execute(insert(TurnRow).values(_turn_values(turn) | {"position": position}))

    def reply(self, owner: str, reply_id: str) -> Turn:
        """The assistant turn of that id."""
        with self._database.read() as session:
            return _turn(own_reply(session, owner, reply_id))

    def finish(self, reply_id: str, ending: ReplyEnding) -> bool:
        """Store how a reply ended and let the conversation go on from it.

        Whoever sees the end may call this: only the first call has an effect. False: the reply had ended already, or
        its session is gone.
        """
        usage = ending.usage
        values = {
            "content": ending.content.replace("\0", "\ufffd"),  # a model can say it, PostgreSQL cannot store it
            "status": "failed" if ending.finish_reason == "error" else "done",
            "finish_reason": ending.finish_reason,
            "prompt_tokens": usage and usage.prompt_tokens,
            "completion_tokens": usage and usage.completion_tokens,
            "cached_tokens": usage and usage.cached_tokens,
            "delta_ends": list(ending.delta_ends),
            "error": _error_values(ending.error),
        }
        with self._database.write() as session:
            _lock_session_of(session, reply_id)
            ended = session.execute(
                update(TurnRow)
                .where(TurnRow.id == reply_id, TurnRow.status == "running")
                .values(values)
                .returning(TurnRow.session_id)
            )
            session_id = ended.scalar_one_or_none()
            if session_id is None:
                return False
            head = {"head_turn_id": reply_id} if ending.becomes_head else {}
            session.execute(
                update(SessionRow).where(SessionRow.id == session_id).values(updated_at=time.time(), **head)
            )
            return True

    def rename(self, owner: str, session_id: str, title: str) -> ChatSession:
        """Give the session another title."""
        return self._change(owner, session_id, {"title": title})

    def select(self, owner: str, session_id: str, turn_id: str) -> ChatSession:
        """Make a turn of this session its head."""
        return self._change(owner, session_id, {"head_turn_id": turn_id})

    def _change(self, owner: str, session_id: str, values: dict[str, str]) -> ChatSession:
        with self._database.write() as session:
            row = own_session(session, owner, session_id, lock=True)
            for name, value in values.items():
                setattr(row, name, value)
            row.updated_at = time.time()
            return _session(row)

    def delete(self, owner: str, session_id: str) -> Sequence[Turn]:
        """Delete the session, all its turns and the feedback on them; returns the replies that were still running."""
        with self._database.write() as session:
            own_session(session, owner, session_id, lock=True)
            running = select(TurnRow).where(TurnRow.session_id == session_id, TurnRow.status == "running")
            stopped = tuple(_turn(row) for row in session.scalars(running))
            _delete(session, [session_id])
            return stopped

    def delete_all(self, owner: str) -> None:
        """Delete every session of the owner's. Replies that run end when nobody listens, and are stored nowhere."""
        with self._database.write() as session:
            _delete(session, select(SessionRow.id).where(SessionRow.owner == owner))

    def expire(self, now: float, seconds: float, limit: int) -> int:
        """Delete sessions, of whichever owner, that nobody touched for so long, `limit` at most; how many there were.

        Talking, renaming, choosing a branch and feedback touch a session. One in which a reply is being written
        stays; but a reply that began more than a day ago was lost with its worker.
        """
        before = now - seconds
        running = select(TurnRow.session_id).where(TurnRow.status == "running", TurnRow.created_at > now - LOST_SECONDS)
        rated = (
            select(TurnRow.session_id)
            .join(FeedbackRow, FeedbackRow.reply_id == TurnRow.id)
            .where(FeedbackRow.updated_at >= before)
        )
        query = select(SessionRow.id).where(
            SessionRow.updated_at < before, SessionRow.id.not_in(running), SessionRow.id.not_in(rated)
        )
        with self._database.write() as session:
            expired = session.scalars(query.order_by(SessionRow.updated_at).limit(limit).with_for_update()).all()
            _delete(session, expired)
        return len(expired)


def _delete(session: Session, session_ids: Sequence[str] | Select[str]) -> None:
    """Delete these sessions, all their turns and the feedback on them."""
    own = TurnRow.session_id.in_(session_ids)
    session.execute(delete(FeedbackRow).where(FeedbackRow.reply_id.in_(select(TurnRow.id).where(own))))
    session.execute(delete(TurnRow).where(own))
    if session.scalars(delete(SessionRow).where(SessionRow.id.in_(session_ids)).returning(SessionRow.id)).all():
        mark_for_erasing(session)


def own_session(
    session: Session, owner: str, session_id: str, *, lock: bool = False, param: str = "session_id"
) -> SessionRow:
    """The session's row, for the rest of the transaction with `lock`. Raises `NotFound` that names `param`."""
    query = select(SessionRow).where(SessionRow.id == session_id, SessionRow.owner == owner)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound("There is no such session.", code="session_not_found", param=param)
    return row


def own_reply(session: Session, owner: str, reply_id: str, *, lock: bool = False) -> TurnRow:
    """The row of an assistant turn, with `lock` for the rest of the transaction. Raises `NotFound`."""
    if lock:
        _lock_session_of(session, reply_id)
    query = (
        select(TurnRow)
        .join(SessionRow, SessionRow.id == TurnRow.session_id)
        .where(TurnRow.id == reply_id, TurnRow.role == "assistant", SessionRow.owner == owner)
    )
    row = session.scalar(query)
    if row is None:
        raise NotFound("There is no such reply.", code="reply_not_found", param="reply_id")
    return row


def _lock_session_of(session: Session, reply_id: str) -> None:
    """Every change of a turn locks its session's row first, so that no two transactions wait for each other."""
    owning = select(TurnRow.session_id).where(TurnRow.id == reply_id).scalar_subquery()
    session.execute(select(SessionRow.id).where(SessionRow.id == owning).with_for_update())


def _session(row: SessionRow) -> ChatSession:
    return ChatSession(
        id=row.id,
        owner=row.owner,
        title=row.title,
        model=row.model,
        system=row.system,
        head_turn_id=row.head_turn_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _session_values(session: ChatSession) -> dict[str, Any]:
    return {name: getattr(session, name) for name in ChatSession.__slots__}


def _turn(row: TurnRow) -> Turn:
    usage = None
    if row.prompt_tokens is not None:
        usage = Usage(row.prompt_tokens, row.completion_tokens or 0, row.cached_tokens or 0)
    error = row.error and (row.error["kind"], ErrorInfo(**row.error["info"]))
    return Turn(
        id=row.id,
        session_id=row.session_id,
        parent_id=row.parent_id,
        role=cast(TurnRole, row.role),
        content=row.content,
        status=cast(TurnStatus, row.status),
        created_at=row.created_at,
        model=row.model,
        finish_reason=row.finish_reason,
        usage=usage,
        delta_ends=tuple(row.delta_ends),
        dropped_turn_ids=tuple(row.dropped_turn_ids),
        error=error or None,
        host=row.host,
    )


def _turn_values(turn: Turn) -> dict[str, Any]:
    values = {name: getattr(turn, name) for name in Turn.__slots__ if name not in ("usage", "error")}
    usage = turn.usage
    return values | {
        "prompt_tokens": usage and usage.prompt_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "cached_tokens": usage and usage.cached_tokens,
        "delta_ends": list(turn.delta_ends),
        "dropped_turn_ids": list(turn.dropped_turn_ids),
        "error": _error_values(turn.error),
    }


def _error_values(error: tuple[str, ErrorInfo] | None) -> dict[str, Any] | None:
    if error is None:
        return None
    kind, info = error
    return {"kind": kind, "info": {name: getattr(info, name) for name in ErrorInfo.__slots__}}
