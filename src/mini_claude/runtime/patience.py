"""Calls to a database that may be away: restarted, updated, failed over to another host."""

import time
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from mini_claude.errors import StorageUnavailable
from mini_claude.utils.logging import get_logger

PATIENCE_SECONDS: Final = 600.0
RETRY_SECONDS: Final = 1.0

_P = ParamSpec("_P")
_T = TypeVar("_T")
log = get_logger(__name__)


def patiently(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What the call returns, made again until the database is back.

    When the database goes between storing and saying so, the call is made twice: it must be one that may be.
    Raises `StorageUnavailable` after `PATIENCE_SECONDS`, and what else the call raises at once.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call(*args, **kwargs)
        except StorageUnavailable as error:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise
            log.warning("database.unavailable", reason=error.message)
        time.sleep(RETRY_SECONDS)
