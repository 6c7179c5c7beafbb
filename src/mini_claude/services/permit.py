"""A permit: the right to one reply, and what it has been charged for that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mini_claude.runtime.messages import ReplyEvent
from mini_claude.runtime.runtime import ReplyStream
from mini_claude.services.wrapped_reply import WrappedReply


@dataclass(frozen=True, slots=True)
class Charge:
    """A window in which something was counted: of which limit, under what key, how long it is, and when it ends."""

    name: str
    key: str
    seconds: int
    ends: float


class Counts(Protocol):
    """What permits need of `LimitService`."""

    async def change(self, charges: Sequence[Charge], num_tokens: int) -> None:
        """Add to token windows."""
        ...

    async def end(self, charges: Sequence[Charge], num_tokens: int, reply_id: str | None) -> None:
        """The same when a reply ends."""
        ...


class Permit:
    """Made by `LimitService.admit`. `reply_id` is what the reply is counted under while it runs, None: it is not.

    `tokens` are the windows in which `num_reserved` tokens were counted for it.
    """

    def __init__(
        self, counts: Counts | None, tokens: Sequence[Charge] = (), num_reserved: int = 0, reply_id: str | None = None
    ) -> None:
        self.reply_id = reply_id
        self._counts = counts
        self._tokens = tokens
        self._num_reserved = num_reserved
        self._settled = False

    @property
    def is_limited(self) -> bool:
        """Whether anything is waiting for the reply's end."""
        return bool(self._tokens) or self.reply_id is not None

    async def reserve(self, num_tokens: int) -> None:
        """Charge for the prompt, once it is known how long that is."""
        if self._counts is not None and self._tokens:
            self._num_reserved += num_tokens
            await self._counts.change(self._tokens, num_tokens)

    async def settle(self, num_tokens: int) -> None:
        """Charge what the reply took instead of what was reserved, and count it as running no more.

        Only the first call does anything. Where the caller is cancelled meanwhile, it is done all the same.
        """
        if self._settled or self._counts is None or not self.is_limited:
            return
        self._settled = True
        await self._counts.end(self._tokens, num_tokens - self._num_reserved, self.reply_id)


UNLIMITED: Final = Permit(None)


class LimitedReply(WrappedReply):
    """Settles the permit however the reply ends."""

    def __init__(self, stream: ReplyStream, permit: Permit) -> None:
        super().__init__(stream)
        self._permit = permit
        self._num_tokens = stream.accepted.prompt_tokens

    async def __anext__(self) -> ReplyEvent:
        try:
            event = await anext(self._events)
        except Exception:
            await self._permit.settle(self._num_tokens)
            raise
        self._num_tokens += len(event.delta.token_ids)
        if event.delta.finish_reason is not None:  # before it is shown: whoever sees it may ask again at once
            usage = event.delta.usage
            await self._permit.settle(usage.total_tokens if usage is not None else self._num_tokens)
        return event

    async def aclose(self) -> None:
        """As `ReplyStream.aclose`."""
        try:
            await self._stream.aclose()
        finally:
            await self._permit.settle(self._num_tokens)
