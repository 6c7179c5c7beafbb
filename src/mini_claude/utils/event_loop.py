"""The event loop of every process of ours that is not uvicorn's own."""

import asyncio
from collections.abc import Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end, on uvloop where there is one (not on Windows): it wakes up in half the processor time."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
