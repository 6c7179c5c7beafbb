"""Which adapters an engine holds: each loaded once, kept while a request uses it, then the least recently used goes.

Lives in the event loop and knows neither weights nor layers: how to load and to drop one is the engine's affair.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from mini_claude.errors import Overloaded
from mini_claude.types import AdapterRef

MAX_ADAPTERS: Final = 16  # one of rank 16 on all linear layers takes 4% of a small model's memory, less of others'
_RETRY_SECONDS: Final = 5.0


class LoadedAdapters:
    """Calls `load` before an adapter is first used and `drop` when it is not held any more, never in between uses."""

    def __init__(
        self,
        load: Callable[[AdapterRef], Coroutine[Any, Any, None]],
        drop: Callable[[AdapterRef], None],
        capacity: int = MAX_ADAPTERS,
    ) -> None:
        self._load = load
        self._drop = drop
        self._capacity = capacity
        self._loads: dict[AdapterRef, asyncio.Task[None]] = {}  # least recently used first
        self._num_users: Counter[AdapterRef] = Counter()
        self._unwanted: set[AdapterRef] = set()

    @asynccontextmanager
    async def use(self, adapter: AdapterRef) -> AsyncIterator[None]:
        """Hold an adapter for the time of the block. Raises what loading it raised, or `Overloaded`."""
        self._num_users[adapter] += 1
        try:
            await self._ready(adapter)
            yield
        finally:
            self._num_users[adapter] -= 1
            if not self._num_users[adapter]:
                del self._num_users[adapter]
                if adapter in self._unwanted:
                    self.remove(adapter)

    def remove(self, adapter: AdapterRef) -> None:
        """Drop it now, or when its last user ends."""
        task = self._loads.get(adapter)
        if task is None:
            return
        if self._is_idle(adapter, task):
            self._discard(adapter)
        else:
            self._unwanted.add(adapter)

    async def _ready(self, adapter: AdapterRef) -> None:
        task = self._loads.pop(adapter, None)
        if task is None:
            self._make_room()
            task = asyncio.create_task(self._load(adapter))
            task.add_done_callback(lambda done: self._loaded(adapter, done))
        self._loads[adapter] = task
        await asyncio.shield(task)  # others may wait for it as well

    def _loaded(self, adapter: AdapterRef, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is not None:
            del self._loads[adapter]
            self._unwanted.discard(adapter)
        elif adapter in self._unwanted:
            self.remove(adapter)

    def _make_room(self) -> None:
        if len(self._loads) < self._capacity:
            return
        idle = next((adapter for adapter, task in self._loads.items() if self._is_idle(adapter, task)), None)
        if idle is None:
            raise Overloaded(
                f"All {self._capacity} places for adapters are taken by running requests. "
                f"Try again in {_RETRY_SECONDS:.0f} s.",
                retry_after=_RETRY_SECONDS,
            )
        self._discard(idle)

    def _is_idle(self, adapter: AdapterRef, task: "asyncio.Task[None]") -> bool:
        return task.done() and not self._num_users[adapter]

    def _discard(self, adapter: AdapterRef) -> None:
        del self._loads[adapter]
        self._unwanted.discard(adapter)
        self._drop(adapter)
