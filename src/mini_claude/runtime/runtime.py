"""What services see of the processes behind them.

`RuntimeClient` (client.py) is the real one, over Unix sockets; tests of services and routes pass an in-process one.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from mini_claude.runtime.messages import (
    Accepted,
    Fact,
    ReplyEvent,
    RuntimeStatus,
    StartChat,
    StartCompletion,
)
from mini_claude.types import LoadOptions, ModelInfo, ModelSpec


class ReplyStream(Protocol):
    """A reply that the engine has accepted: iterate for its events, the last one carries a finish_reason.

    Iterating raises `EngineDied` when the engine process ends, `InternalError` when computing this reply failed,
    and `Unavailable` (code "slow_consumer") when more than 256 events waited to be read.
    """

    accepted: Accepted

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        """Events in order of their number."""
        ...

    def abort(self) -> None:
        """End the reply within one engine step; a last event with finish_reason "abort" still comes."""
        ...

    async def aclose(self) -> None:
        """Stop listening. Aborts the reply unless it is resumable or has ended."""
        ...


class Runtime(Protocol):
    """Models in processes of their own, by name. Every call may raise `Unavailable` when there is no supervisor."""

    async def load(self, spec: ModelSpec, options: LoadOptions, *, exact: bool = True) -> ModelInfo:
        """Load, or wait for a load under way, and return the ready model. Raises `ModelLoadError`.

        `exact` replaces a copy that was loaded with other options; without it any loaded copy will do.
        """
        ...

    async def unload(self, name: str) -> None:
        """End the model's process after its running requests. Raises `NotFound` when it is not loaded."""
        ...

    async def status(self) -> RuntimeStatus:
        """What runs now."""
        ...

    async def metrics(self) -> str:
        """Prometheus exposition text."""
        ...

    async def start(self, spec: ModelSpec, options: LoadOptions, request: StartChat | StartCompletion) -> ReplyStream:
        """Load the model if need be and start a reply. Returns once the engine accepted it, else raises."""
        ...

    async def attach(self, spec: ModelSpec, options: LoadOptions, request_id: str, after: int) -> ReplyStream:
        """Listen to a resumable reply from event `after` + 1 on. Raises `NotFound` when the engine forgot it."""
        ...

    def publish(self, *facts: Fact) -> None:
        """Tell the metrics; never blocks, never raises."""
        ...
