"""Reading a request's body: bounded in size, in depth and in time, before anything parses it."""

import asyncio
import re
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from mini_claude.errors import InvalidRequest, PayloadTooLarge
from mini_claude.web.error_handlers import HTTPStatusError

MAX_DEPTH: Final = 32
BODY_SECONDS: Final = 30.0  # a body of a megabyte takes this long on the slowest line that is worth serving

# Everything is possessive and the closing quote is optional, so that no input makes the search start over.
_STRINGS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")


def too_deep(body: bytes) -> bool:
    """Whether JSON nests deeper than MAX_DEPTH, without parsing it.

    What is left of a document without its strings and scalars is brackets; each round takes off the innermost level.
    Unbalanced brackets count as deep where there are many; the parser refuses them anyway.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", body).translate(_SQUARE, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def check_depth(body: bytes) -> None:
    """Raise `InvalidRequest` for JSON that nests too deep."""
    if too_deep(body):
        raise InvalidRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels: flatten it.", code="invalid_json")


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> Receive:
    """Read the whole body and return a `receive` that gives it again, then what follows (the disconnect).

    Raises `PayloadTooLarge` (also while a chunked body is still coming), `InvalidRequest` for JSON that is too deep,
    `HTTPStatusError` 408 for a body that is too slow, `ClientDisconnect`.
    """
    headers = Headers(scope=scope)
    announced = headers.get("content-length", "0")
    too_large = PayloadTooLarge(f"The body is larger than {max_bytes} bytes: send less at once.")
    if not announced.isascii() or not announced.isdigit() or len(announced) > 12 or int(announced) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise HTTPStatusError(
            408, f"The body did not arrive within {BODY_SECONDS:.0f} s: send it faster.", "request_timeout"
        ) from error
    if "json" in headers.get("content-type", ""):
        check_depth(bytes(body))
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return replay
