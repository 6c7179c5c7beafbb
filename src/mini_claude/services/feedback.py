"""Feedback on replies: a thumb, a text that would have been better, or both."""

from collections.abc import Mapping
from typing import Final

from anyio.to_thread import run_sync

from mini_claude.data.feedback import FeedbackRepository
from mini_claude.data.records import Feedback, Rating
from mini_claude.errors import InvalidRequest
from mini_claude.services.identity import Caller
from mini_claude.services.session_turn import require_unicode

MAX_CORRECTION: Final = 65_536  # characters


class FeedbackService:
    """What callers think of the replies in their own sessions."""

    def __init__(self, repository: FeedbackRepository) -> None:
        self._repository = repository

    async def rate(
        self, caller: Caller, reply_id: str, *, rating: Rating | None, correction: str | None = None
    ) -> Feedback:
        """Put this in place of what the caller thought of the reply; with neither, take it away.

        Raises `NotFound`, `InvalidRequest` for a correction that cannot be a reply, `Conflict` for a reply that is
        still being written and for a rating of an empty one.
        """
        if correction is not None:
            require_text(correction, "correction", MAX_CORRECTION)
        return await run_sync(self._repository.rate, caller.owner, reply_id, rating, correction)

    async def of_session(self, caller: Caller, session_id: str) -> Mapping[str, Feedback]:
        """All feedback in one of the caller's sessions, by the reply's id. Raises `NotFound`."""
        return await run_sync(self._repository.of_session, caller.owner, session_id)


def require_text(text: str, param: str, max_characters: int) -> None:
    """Raise `InvalidRequest` for what could never be learned from: no text, too much, or characters that are none."""
    require_unicode(text, param)
    if not text.strip():
        raise InvalidRequest(f"{param} is empty; write something.", param=param)
    if len(text) > max_characters:
        raise InvalidRequest(f"{param} has more than {max_characters} characters; shorten it.", param=param)
    if "\0" in text:
        raise InvalidRequest(f"{param} holds a NUL character; take it out.", param=param)
