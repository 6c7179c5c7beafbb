"""Logging for every process: structlog in front, the standard library behind.

On a terminal lines are readable, elsewhere they are JSON; either way a rotated JSON file is kept under
`data_dir/logs`. What is logged is codes, counts, times and ids, never a prompt, a reply or a key.
"""

import fcntl
import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

import structlog

from mini_claude.utils.config import Settings

# These log whole requests, or every file that they touch, at INFO.
QUIET_LOGGERS = (
    "httpx",
    "httpcore",
    "uvicorn.access",
    "alembic",
    "asyncio",
    "transformers",
    "huggingface_hub",
)

_held_slots: list[IO[str]] = []  # open for the life of the process: closing one would release its log file


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose lines carry `logger=name` and whatever structlog.contextvars holds (request_id)."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _claim_log_file(directory: Path, process: str) -> Path:
    """`process-N.log` with the first N that no living process holds: rotation works on one writer only."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # conversations will be stored there too
    directory.mkdir(exist_ok=True)
    number = 0
    while True:
        slot = (directory / f".{process}-{number}.lock").open("w")
        try:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            slot.close()
            number += 1
            continue
        _held_slots.append(slot)
        return directory / f"{process}-{number}.log"


class _JsonFormatter(structlog.stdlib.ProcessorFormatter):
    """Makes a line once for all who want it: the console, the file, and the file to see whether it still fits."""

    def format(self, record: logging.LogRecord) -> str:
        line: str | None = record.__dict__.get("json_line")
        if line is None:
            line = record.__dict__["json_line"] = super().format(record)
        return line


def _without_url(record: logging.LogRecord) -> bool:
    """False for uvicorn's lines with the URL of a WebSocket, which may hold anything; ours have its route."""
    return '"WebSocket ' not in str(record.msg)


def configure_logging(settings: Settings, process: str) -> None:
    """Set up this process's logging once. `process` names the log file: api, supervisor, engine-<model>."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )

    def formatter(*, as_json: bool) -> logging.Formatter:
        final: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
        if as_json:
            final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
            return _JsonFormatter(foreign_pre_chain=shared, processors=final)
        final.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
        return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final)

    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(formatter(as_json=as_json))
    file = RotatingFileHandler(
        _claim_log_file(settings.logs_dir, process),
        maxBytes=settings.log_file_bytes,
        backupCount=settings.log_file_count,
        encoding="utf-8",
        delay=True,
    )
    file.setFormatter(formatter(as_json=True))
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(console)
    root.addHandler(file)
    root.setLevel(settings.log_level.upper())
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
        logging.getLogger(name).propagate = True  # transformers, once imported, would keep its warnings to itself
    for name in ("uvicorn", "uvicorn.error"):  # through our handlers, not their own
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))  # at DEBUG it writes headers and frames
    logging.getLogger("uvicorn.error").addFilter(_without_url)
