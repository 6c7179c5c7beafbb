"""What surrounds every request: an id, the Origin check, the bounds of head, body and number, headers for browsers,
metrics, and the last safety net.

Pure ASGI, so that streams and WebSockets pass through it untouched. Who may call is the routers' business
(deps.py); what is here holds for every path, also for those that no router knows.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final
from uuid import uuid4

import structlog
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mini_claude.errors import Forbidden, MiniClaudeError, Overloaded
from mini_claude.runtime.messages import RequestServed
from mini_claude.services.services import Services
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import get_logger
from mini_claude.web.deps import services_of
from mini_claude.web.error_handlers import error_response, known_error
from mini_claude.web.origins import PREFLIGHT_HEADERS, cors_headers, origin_allowed
from mini_claude.web.request_body import read_body
from mini_claude.web.request_head import check_head
from mini_claude.web.streaming import shutting_down
from mini_claude.web.upload import is_upload

log = get_logger(__name__)

UNMATCHED: Final = "unmatched"  # the one label of all paths that no route knows
METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
CLIENT_GONE: Final = 499  # a status for metrics only: there is nobody left to read it
# Of every answer that has no others: it is data, for the asker alone, and no browser makes anything else of it.
ANSWER_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class _Answer:
    """A `send` that adds headers to the response and remembers its status."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            self.status = message.get("status", 101)
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            headers.update(self._headers)
            for name, value in ANSWER_HEADERS.items():
                headers.setdefault(name, value)
        elif message["type"] == "websocket.close" and self.status is None:
            self.status = 403  # what a server answers when a WebSocket is closed before it was accepted
        await self._send(message)


class AccessMiddleware:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._num_open = 0  # requests and WebSockets of this worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request or WebSocket; never raises for a bug inside."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        services = services_of(connection)
        request_id = f"req_{uuid4().hex}"
        connection.state.request_id = request_id
        origin = connection.headers.get("origin")
        answer = _Answer(send, {"x-request-id": request_id, **cors_headers(origin, services.settings)})
        started = time.perf_counter()
        self._num_open += 1
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._serve(connection, services.settings, receive, answer)
            except ClientDisconnect:
                answer.status = CLIENT_GONE
            except asyncio.CancelledError:  # the server's deadline for shutting down has passed
                if scope["type"] == "http":
                    await self._give_up(shutting_down(), scope, receive, answer)
                raise
            except Exception as error:
                known = known_error(error, request_id)
                await self._give_up(known, scope, receive, answer)
            finally:
                self._num_open -= 1
                _publish(scope, services, answer.status or CLIENT_GONE, time.perf_counter() - started)

    async def _serve(self, connection: HTTPConnection, settings: Settings, receive: Receive, answer: _Answer) -> None:
        scope = connection.scope
        if self._num_open > settings.max_connections:
            raise Overloaded("This server has as many connections as it can take: try again in a second.")
        check_head(scope)
        origin = connection.headers.get("origin")
        if not origin_allowed(origin, connection.headers.get("host"), settings):
            raise Forbidden(
                "Pages of this origin may not call this server: add it to allowed_origins.", code="origin_not_allowed"
            )
        if scope["type"] == "http":
            if not is_upload(scope):
                receive = await read_body(scope, receive, settings.max_body_bytes)
            if _is_preflight(connection, settings):
                await Response(status_code=204, headers=PREFLIGHT_HEADERS)(scope, receive, answer)
                return
        await self._app(scope, receive, answer)

    async def _give_up(self, error: MiniClaudeError, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Answer with the error where nothing was answered yet; else the server just cuts the connection."""
        if answer.status is None:
            await error_response(error, scope)(scope, receive, answer)


def _is_preflight(connection: HTTPConnection, settings: Settings) -> bool:
    return (
        connection.scope["method"] == "OPTIONS"
        and "access-control-request-method" in connection.headers
        and connection.headers.get("origin") in settings.allowed_origins
    )


def _publish(scope: Scope, services: Services, status: int, seconds: float) -> None:
    """Metrics and one log line. Both carry the route's template: paths are the client's, and without number."""
    route = scope.get("route")
    template = route.path_format if isinstance(route, APIRoute | APIWebSocketRoute) else UNMATCHED
    method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
    if method not in METHODS and method != "WEBSOCKET":
        method = "OTHER"
    services.runtime.publish(RequestServed(method, template, status, seconds))
    log.info("request", method=method, route=template, status=status, seconds=round(seconds, 4))
