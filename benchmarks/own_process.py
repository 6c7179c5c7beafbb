"""Contestants take turns in processes of their own: none is measured with another one's memory, threads or imports."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def in_own_process(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """What `script`, called with these, prints last, which is JSON. `environment` comes on top of ours.

    Raises `RuntimeError` with what it had to say where it fails.
    """
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
