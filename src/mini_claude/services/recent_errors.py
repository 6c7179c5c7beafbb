"""What the log files tell of faults: codes and ids of the latest warnings and errors, never a message's own words.

The words of a log line come from libraries and exceptions too, and whoever may look at the page need not be allowed to
read them. Events of ours are names ("engine.crashed"); of a line by somebody else the logger's name is shown.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any, Final

TAIL_BYTES: Final = 262_144  # of each log file
_LEVELS: Final = frozenset({"warning", "error", "critical"})
_IDS: Final = (
    *("code", "model", "job_id", "request_id", "reply_id", "pid", "exit_code", "error_class", "call", "restarts"),
    *("route", "status", "num_bytes"),
)
_EVENT: Final = re.compile(r"[a-z0-9_]{1,40}(\.[a-z0-9_]{1,40}){0,3}")
_OWN_LOGGER: Final = re.compile(r"mini_claude\..+|__main__")
_CLASS: Final = re.compile(r"[A-Z][A-Za-z]{1,60}(Error|Exception)")
_PLAIN: Final = re.compile(r"[\w.:@/{}-]{1,80}")


@dataclass(frozen=True, slots=True)
class LoggedError:
    """A line of a log. `at` is ISO 8601 in UTC; `process` is which log it is from; `ids` are codes, ids and counts."""

    at: str
    level: str
    process: str
    event: str
    ids: Mapping[str, str]


def recent_errors(logs_dir: Path, limit: int) -> list[LoggedError]:
    """The latest warnings and errors of all processes, newest first. Blocking; a log that is gone counts as empty."""
    found = (error for path in logs_dir.glob("*.log") for error in _errors_of(path))
    return nlargest(limit, found, key=lambda error: error.at)


def _errors_of(path: Path) -> Iterator[LoggedError]:
    for line in _last_lines(path):
        try:
            values = json.loads(line)
        except ValueError:
            continue  # the first line may have lost its beginning
        if isinstance(values, dict) and values.get("level") in _LEVELS:
            yield _error(path.stem, values)


def _last_lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().splitlines()
    except FileNotFoundError:  # rotated away
        return []


def _error(process: str, values: Mapping[str, Any]) -> LoggedError:
    event, logger = str(values.get("event", "")), str(values.get("logger", "unknown"))
    if _EVENT.fullmatch(event) is None or _OWN_LOGGER.fullmatch(logger) is None:
        event = logger
    ids = {name: str(values[name]) for name in _IDS if isinstance(values.get(name), str | int)}
    plain = {name: value for name, value in ids.items() if _PLAIN.fullmatch(value)}
    plain |= {name: str(values[name]) for name in ("error", "cause") if _CLASS.fullmatch(str(values.get(name)))}
    return LoggedError(str(values.get("timestamp", "")), str(values["level"]), process, event, plain)
