"""What every event of the page starts with: who is asking; and how its errors reach the person."""

import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ParamSpec, TypeVar

import gradio as gr
from pydantic import ValidationError

from mini_claude.data.records import KeyRole, Limits
from mini_claude.errors import MiniClaudeError, Unauthorized
from mini_claude.services.identity import Caller, require_admin
from mini_claude.utils.logging import get_logger
from mini_claude.web.page.labels import LABELS
from mini_claude.web.page_line import KEY_HEADER, LIMITS_HEADER, OWNER_HEADER, ROLE_HEADER

log = get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
ERROR_SECONDS = 8.0
NOTICE_SECONDS = 4.0  # it lies over a part of the page


def visitor(request: gr.Request) -> Caller:
    """Whom the worker let in. Raises `Unauthorized` where no worker did."""
    headers = request.headers
    owner = headers.get(OWNER_HEADER)
    if not owner:
        raise Unauthorized("This request did not come through a worker.")
    role: KeyRole = "admin" if headers.get(ROLE_HEADER) == "admin" else "user"
    limits = Limits(**json.loads(headers.get(LIMITS_HEADER) or "{}"))
    return Caller(owner, headers.get(KEY_HEADER), role, limits)


def admin_visitor(request: gr.Request) -> Caller:
    """The same for what manages the server for everybody. Raises `Forbidden` unless an admin asks."""
    return require_admin(visitor(request))


def shown(error: Exception) -> gr.Error:
    """The error as the page shows it: our own sentence, or that there was a fault, never an exception's text."""
    if isinstance(error, MiniClaudeError):
        message = error.message
    elif isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = f"{LABELS.get(name, name)}: {first['msg']}."
    else:
        log.error("page.event_failed", error_class=type(error).__name__, exc_info=error)
        message = "Something went wrong; the server's log says what."
    return gr.Error(message, duration=ERROR_SECONDS, print_exception=False)


def tell(message: str) -> None:
    """A short notice on the page of whoever's event this is."""
    gr.Info(message, duration=NOTICE_SECONDS)


def event(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Make a coroutine function an event's: its errors become a notice on the page."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise shown(error) from error

    return call


def stream(function: Callable[P, AsyncIterator[T]]) -> Callable[P, AsyncIterator[T]]:
    """The same for an asynchronous generator."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        try:
            async for item in function(*args, **kwargs):
                yield item
        except gr.Error:
            raise
        except Exception as error:
            raise shown(error) from error

    return call
