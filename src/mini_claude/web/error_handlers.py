"""The one place where errors become HTTP: status, shape and headers.

    native   {"error": {"code", "message", "param", "request_id"}}
    OpenAI   {"error": {"message", "type", "param", "code"}}           for paths under /v1/

An exception outside the tree of errors.py is a bug: it is logged as its class and the places it passed through
(never its message, which may quote a prompt) and the client gets a request id that leads to that line.
"""

import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import Scope

from mini_claude.errors import (
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    InternalError,
    InvalidRequest,
    MiniClaudeError,
    ModelLoadError,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    StorageError,
    Unauthorized,
    Unavailable,
)
from mini_claude.utils.logging import get_logger

log = get_logger(__name__)

STATUS: Final[Mapping[type[MiniClaudeError], int]] = {
    InvalidRequest: 400,
    IdempotencyKeyReused: 422,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    PayloadTooLarge: 413,
    RateLimited: 429,
    ModelLoadError: 422,  # not 5xx: SDKs would retry, and each retry would be another failing load
    Unavailable: 503,
    StorageError: 503,
    InternalError: 500,
    MiniClaudeError: 500,
}
OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
MAX_NAME_SHOWN: Final = 64  # characters of an unknown field's name that an error repeats


class WrongShape(InvalidRequest):
    """The body does not fit the schema: 400 in the OpenAI API, 422 in the native one."""


class HTTPStatusError(MiniClaudeError):
    """An error of HTTP itself (no such path, no such method, a body that never comes), with its own status."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message, code=code)
        self.status = status


def printable(text: str) -> str:
    """`text` without lone surrogates, which no UTF-8 response could carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_openai_path(path: str) -> bool:
    """Whether this path speaks OpenAI's shapes. Only the shape of errors hangs on it, never access."""
    return path.startswith("/v1/")


def status_of(error: MiniClaudeError, *, openai: bool) -> int:
    """The HTTP status of an error."""
    if isinstance(error, HTTPStatusError):
        return error.status
    if isinstance(error, WrongShape) and not openai:
        return 422
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def openai_error(error: MiniClaudeError) -> dict[str, Any]:
    """The `error` object of OpenAI's API."""
    status = status_of(error, openai=True)
    kind = "server_error" if status >= 500 else OPENAI_TYPES.get(status, "invalid_request_error")
    return {"message": printable(error.message), "type": kind, "param": error.param, "code": error.code}


def native_error(error: MiniClaudeError, request_id: str) -> dict[str, Any]:
    """The `error` object of the native API."""
    return {
        "code": error.code,
        "message": printable(error.message),
        "param": error.param,
        "request_id": request_id,
    }


def error_response(error: MiniClaudeError, scope: Scope, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response in the shape of the API that was called."""
    openai = is_openai_path(scope["path"])
    status = status_of(error, openai=openai)
    own: dict[str, str] = dict(headers or {})
    if isinstance(error, Unavailable | RateLimited):
        own["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))
    if isinstance(error, RateLimited) and error.limit is not None:
        own |= {
            "RateLimit-Limit": str(error.limit),
            "RateLimit-Remaining": "0",
            "RateLimit-Reset": own["Retry-After"],
        }
    if status == 408:
        own["Connection"] = "close"  # else a client that sends a byte now and then would keep it for ever
    if status == 401:
        own["WWW-Authenticate"] = "Bearer"
    body = openai_error(error) if openai else native_error(error, scope["state"]["request_id"])
    return JSONResponse({"error": body}, status, own)


def known_error(error: Exception, request_id: str) -> MiniClaudeError:
    """The error itself when it is one of ours; a bug is logged and becomes an `InternalError` that tells nothing."""
    if isinstance(error, MiniClaudeError):
        return error
    places = traceback.extract_tb(error.__traceback__)
    log.error(
        "unexpected_error",
        error=type(error).__name__,
        cause=type(error.__cause__).__name__ if error.__cause__ else None,
        places=[f"{place.filename}:{place.lineno} {place.name}" for place in places],
    )
    return InternalError(f"Internal error. The server's log has the details under request id {request_id}.")


def shape_error(errors: Sequence[Any]) -> WrongShape:
    """The first of Pydantic's errors as one sentence that names the field and the fix; values are not repeated.

    The first element of a location is where the field is (body, query, a frame's type), not a part of its name.
    """
    error = errors[0]
    kind: str = error["type"]
    context: dict[str, Any] = error.get("ctx") or {}
    places = [str(place) for place in error["loc"][1:]]
    relative = context.get("param")
    param = printable(".".join([*places, relative] if relative else places))[:256] or None
    if kind == "json_invalid":
        return WrongShape(f"The body is not valid JSON: {context['error']}.", code="invalid_json")
    if kind == "unsupported_parameter":
        return WrongShape(error["msg"], code="unsupported_parameter", param=param)
    if kind == "string_unicode" and param is None:
        return WrongShape("The name of a field holds half of a surrogate pair: send valid Unicode.")
    if param is None:
        return WrongShape("Send a JSON object with the header 'Content-Type: application/json'.", code="invalid_json")
    name = param[:MAX_NAME_SHOWN]
    if kind == "extra_forbidden":
        return WrongShape(
            f"Unknown parameter: '{name}'. Check its spelling or leave it out.",
            code="unknown_parameter",
            param=param,
        )
    if kind == "missing":
        return WrongShape(f"'{name}' is required.", code="missing_required_parameter", param=param)
    return WrongShape(f"Invalid '{name}': {error['msg']}", param=param)


def http_error(error: HTTPException) -> HTTPStatusError:
    """What FastAPI and Starlette raise by themselves: no such path, method, or an unreadable body."""
    if error.status_code == 404:
        return HTTPStatusError(404, "There is nothing at this address: see /docs for what there is.", "unknown_url")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return HTTPStatusError(405, f"This address does not know that method: use {allowed}.", "method_not_allowed")
    return HTTPStatusError(error.status_code, "The body could not be read as JSON.", "invalid_json")


async def _on_known(connection: HTTPConnection, error: Exception) -> JSONResponse:
    assert isinstance(error, MiniClaudeError)
    return error_response(error, connection.scope)


async def _on_shape(connection: HTTPConnection, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_response(shape_error(error.errors()), connection.scope)


async def _on_http(connection: HTTPConnection, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(http_error(error), connection.scope, error.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Have routes raise and this file answer. Bugs are caught further out, in access.py."""
    app.add_exception_handler(MiniClaudeError, _on_known)
    app.add_exception_handler(RequestValidationError, _on_shape)
    app.add_exception_handler(HTTPException, _on_http)
