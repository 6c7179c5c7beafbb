"""The events of one reply in the engine process, numbered, and who listens to them."""

from mini_claude.runtime.connection import Connection
from mini_claude.runtime.messages import Failed, ReplyEvent
from mini_claude.types import GenerationDelta


class ReplyLog:
    """Numbers deltas from 1. Keeps them only for a resumable reply: any other one has one listener, from the start.

    Listeners are the connections of workers.
    """

    def __init__(self, request_id: str, listener: Connection, *, resumable: bool) -> None:
        self.request_id = request_id
        self.resumable = resumable
        self.listeners = {listener}
        self.prompt_tokens = 0
        self.ended = False
        self._num_events = 0
        self._events: list[ReplyEvent | Failed] = []

    def append(self, delta: GenerationDelta) -> ReplyEvent:
        """The next event."""
        self._num_events += 1
        event = ReplyEvent(self.request_id, self._num_events, delta)
        self.ended = delta.finish_reason is not None
        if self.resumable:
            self._events.append(event)
        return event

    def fail(self, failed: Failed) -> Failed:
        """The end of a reply that broke."""
        self.ended = True
        if self.resumable:
            self._events.append(failed)
        return failed

    def after(self, number: int) -> list[ReplyEvent | Failed]:
        """Kept events with a larger number; a failure comes after all of them."""
        return self._events[max(number, 0) :]
