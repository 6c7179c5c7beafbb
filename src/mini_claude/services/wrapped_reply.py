"""A reply that somebody listens in on."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from mini_claude.runtime.messages import ReplyEvent
from mini_claude.runtime.runtime import ReplyStream


class WrappedReply(ABC):
    """A `ReplyStream` around another one. What follows from its events and its end is the subclass's."""

    def __init__(self, stream: ReplyStream) -> None:
        self.accepted = stream.accepted
        self._stream = stream
        self._events = aiter(stream)

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        return self

    @abstractmethod
    async def __anext__(self) -> ReplyEvent:
        """The next of the other stream's events."""

    def abort(self) -> None:
        """As `ReplyStream.abort`."""
        self._stream.abort()

    @abstractmethod
    async def aclose(self) -> None:
        """As `ReplyStream.aclose`."""
