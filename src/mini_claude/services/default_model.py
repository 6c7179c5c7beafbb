"""The model behind the alias "default": what somebody chose, else the setting."""

from collections.abc import Sequence

from anyio.to_thread import run_sync

from mini_claude.data.default_models import DefaultModelRepository
from mini_claude.data.records import DefaultChoice


class DefaultModel:
    """All workers see a choice with the next request."""

    def __init__(self, repository: DefaultModelRepository, fallback: str) -> None:
        """`fallback` holds until somebody chooses."""
        self._repository = repository
        self.fallback = fallback

    async def current(self) -> str:
        """A model's or an adapter version's reference. It may have been deleted since it was chosen."""
        newest = await self.history(1)
        return newest[0].reference if newest else self.fallback

    async def history(self, limit: int) -> Sequence[DefaultChoice]:
        """What was chosen, newest first."""
        return await run_sync(self._repository.history, limit)

    async def choose(self, reference: str) -> None:
        """From now on this one; it exists."""
        await run_sync(self._repository.choose, reference)
