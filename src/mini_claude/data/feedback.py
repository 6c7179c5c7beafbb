"""What a session's owner thinks of its replies: at most one feedback a reply."""

import time
from collections.abc import Mapping, Sequence
from typing import cast

from sqlalchemy import select

from mini_claude.data.database import Database
from mini_claude.data.records import Feedback, Rating
from mini_claude.data.sessions import own_reply, own_session
from mini_claude.data.tables import FeedbackRow, SessionRow, TurnRow
from mini_claude.errors import Conflict


class FeedbackRepository:
    """Rows of `feedback`. What belongs to another owner's session does not exist (`NotFound`)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rate(self, owner: str, reply_id: str, rating: Rating | None, correction: str | None) -> Feedback:
        """Put this in place of the reply's feedback; with neither, take it away.

        Raises `NotFound`, and `Conflict` for a reply that is still being written and for a rating of an empty one.
        """
        now = time.time()
        with self._database.write() as session:
            turn = own_reply(session, owner, reply_id, lock=True)
            if turn.status == "running":
                raise Conflict("This reply is still being written; wait for its end or stop it.", param="reply_id")
            if rating is not None and not turn.content.strip():
                raise Conflict("This reply has no text that could be rated; correct it instead.", param="rating")
            row = session.get(FeedbackRow, reply_id)
            if row is None and (rating is not None or correction is not None):
                session.add(FeedbackRow(reply_id=reply_id, rating=rating, correction=correction, updated_at=now))
            elif row is not None and rating is None and correction is None:
                session.delete(row)
            elif row is not None:
                row.rating, row.correction, row.updated_at = rating, correction, now
        return Feedback(reply_id, rating, correction, now)

    def of_session(self, owner: str, session_id: str) -> Mapping[str, Feedback]:
        """All feedback in the session, by the reply's id. Raises `NotFound`."""
        with self._database.read() as session:
            own_session(session, owner, session_id)
            rows = session.scalars(
                select(FeedbackRow)
                .join(TurnRow, TurnRow.id == FeedbackRow.reply_id)
                .where(TurnRow.session_id == session_id)
                .order_by(TurnRow.position)
            )
            return {row.reply_id: _feedback(row) for row in rows}

    def sessions(self, owner: str) -> Sequence[str]:
        """Ids of the owner's sessions in which there is any, oldest session first."""
        with self._database.read() as session:
            rated = select(TurnRow.session_id).join(FeedbackRow, FeedbackRow.reply_id == TurnRow.id)
            query = select(SessionRow.id).where(SessionRow.owner == owner, SessionRow.id.in_(rated))
            return tuple(session.scalars(query.order_by(SessionRow.created_at, SessionRow.id)))


def _feedback(row: FeedbackRow) -> Feedback:
    return Feedback(row.reply_id, cast(Rating | None, row.rating), row.correction, row.updated_at)
