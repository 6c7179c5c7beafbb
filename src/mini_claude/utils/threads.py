"""Blocking work in threads that cannot be left half done."""

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio.to_thread import run_sync

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def run_to_its_end(function: Callable[[*Args], T], *args: *Args, undo: Callable[[T], object] | None = None) -> T:
    """The result of a blocking function, in a thread. A caller that is cancelled waits for it all the same.

    A cancelled task leaves its thread alone otherwise, and cleans up what that is still working on. `undo`, which may
    block, is then given the result that the caller will not get.
    """
    task = asyncio.ensure_future(run_sync(function, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if undo is not None and task.exception() is None:
            await asyncio.wait({asyncio.ensure_future(run_sync(undo, task.result()))})
        raise
