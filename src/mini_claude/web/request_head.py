"""The bounds of a request's head: its address and its headers."""

from collections.abc import Sequence
from typing import Final

from starlette.types import Scope

from mini_claude.web.error_handlers import HTTPStatusError

MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 32_768  # what nginx takes by default
MAX_LINE_BYTES: Final = 8_000  # of a WebSocket's head: the library that reads it takes 8,192
TOO_LARGE: Final = (
    f"The request's address and headers are larger than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers: send fewer."
)

Headers = Sequence[tuple[bytes, bytes]]


def head_too_large(address: bytes, headers: Headers) -> bool:
    """Whether a head is over the bounds; `address` is the path with its query."""
    num_bytes = len(address) + sum(len(name) + len(value) for name, value in headers)
    return num_bytes > MAX_HEAD_BYTES or len(headers) > MAX_HEADERS


def has_long_line(address: bytes, headers: Headers) -> bool:
    """Whether a line of a WebSocket's head is too long."""
    return max(len(address), *(len(name) + len(value) for name, value in headers)) > MAX_LINE_BYTES


def check_head(scope: Scope) -> None:
    """Raise `HTTPStatusError` 431 for a head over the bounds."""
    if head_too_large(scope.get("raw_path", b"") + scope["query_string"], scope["headers"]):
        raise HTTPStatusError(431, TOO_LARGE, "head_too_large")
