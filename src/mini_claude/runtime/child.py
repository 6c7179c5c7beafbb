"""Starting a module of ours as a process of its own."""

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any

import msgspec


async def start_child(
    module: str, launch: Any, environment: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Run `python -m module` with these variables added; it reads `launch`, as one line of JSON, from its input.

    The input stays open as long as we live: that is how the child notices our end.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=os.environ | dict(environment or {}),
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(launch) + b"\n")
    return process
