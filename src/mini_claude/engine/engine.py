"""What an engine is: token ids in, deltas out.

An engine knows nothing of messages, templates, sessions or HTTP. It is used from one asyncio loop; where it
computes (a thread, another library's threads) is its own affair.
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from mini_claude.types import AdapterRef, EngineStats, GenerationDelta, GenerationRequest


class Engine(Protocol):
    """The protocol behind which `torch_engine`, `echo_engine` and later engines stand."""

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and completion may have together."""
        ...

    def check_room(self, owner: str) -> None:
        """Raise `Overloaded` when no further request of this owner may wait: known before it is tokenised."""
        ...

    def check(self, request: GenerationRequest) -> None:
        """Raise what `generate` would raise before its first delta: `ContextLengthExceeded`, `InvalidRequest`
        (a logit_bias id outside the vocabulary) or what `check_room` raises. Cheap, no side effects."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Yield deltas until one has a finish_reason. Closing the iterator aborts within one step.

        Raises the errors of `check` and `load_adapter`, and `InternalError` when computing this request failed;
        other requests are not affected by any of them.
        """
        ...

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Make an adapter ready, while other requests go on; `generate` does the same for its request's adapter.

        Raises `ModelLoadError` when its folder is unsafe, broken or made for another model, and `Overloaded` when
        requests use as many other adapters as the engine can hold.
        """
        ...

    def remove_adapter(self, adapter: AdapterRef) -> None:
        """Free an adapter and what was cached of its replies, once no request uses it; unknown ones are ignored."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request within one step with finish_reason "abort"; unknown ids are ignored."""
        ...

    def stats(self) -> EngineStats:
        """A consistent snapshot, cheap enough to be asked for once a second."""
        ...

    async def close(self) -> None:
        """Abort everything, join threads and release memory."""
        ...
