"""What people think of answers: feedback on the replies in their sessions, and preferences between two answers."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.feedback import FeedbackRepository
from mini_claude.data.preferences import PreferenceRepository
from mini_claude.data.records import Answer, Feedback, Preference, Rating
from mini_claude.services.identity import Caller
from mini_claude.services.preference_rules import check_preference, require_text
from mini_claude.types import Message

MAX_PREFERENCES: Final = 10_000  # of one owner


class FeedbackService:
    """What callers think of answers; each sees their own."""

    def __init__(self, feedback: FeedbackRepository, preferences: PreferenceRepository) -> None:
        self._feedback = feedback
        self._preferences = preferences

    async def rate(
        self, caller: Caller, reply_id: str, *, rating: Rating | None, correction: str | None = None
    ) -> Feedback:
        """Put this in place of what the caller thought of the reply; with neither, take it away.

        Raises `NotFound`, `InvalidRequest` for a correction that cannot be a reply, `Conflict` for a reply that is
        still being written and for a rating of an empty one.
        """
        if correction is not None:
            require_text(correction, "correction")
        return await run_sync(self._feedback.rate, caller.owner, reply_id, rating, correction)

    async def of_session(self, caller: Caller, session_id: str) -> Mapping[str, Feedback]:
        """All feedback in one of the caller's sessions, by the reply's id. Raises `NotFound`."""
        return await run_sync(self._feedback.of_session, caller.owner, session_id)

    async def sessions(self, caller: Caller) -> Sequence[str]:
        """Ids of the caller's sessions in which there is any feedback, oldest first."""
        return await run_sync(self._feedback.sessions, caller.owner)

    async def prefer(
        self, caller: Caller, *, messages: Sequence[Message], chosen: Answer, rejected: Answer, blind: bool
    ) -> Preference:
        """Store that `chosen` is the better answer to the messages, which end with a user's.

        Raises `InvalidRequest` for what could not be learned from, `Conflict` for more than MAX_PREFERENCES.
        """
        check_preference(messages, chosen, rejected)
        preference = Preference(uuid.uuid4().hex, caller.owner, tuple(messages), chosen, rejected, blind, time.time())
        await run_sync(self._preferences.add, preference, MAX_PREFERENCES)
        return preference

    async def preferences(self, caller: Caller, limit: int, before: str | None = None) -> Sequence[Preference]:
        """Newest first; `before` is the id of the last one of the previous page. Raises `NotFound` for that."""
        return await run_sync(self._preferences.list, caller.owner, limit, before)

    async def remove_preference(self, caller: Caller, preference_id: str) -> None:
        """Forget a preference; datasets that were made of it stay. Raises `NotFound`."""
        await run_sync(self._preferences.remove, caller.owner, preference_id)
