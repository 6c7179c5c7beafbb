"""What routes ask for: the services, and who is calling.

Access is denied by default: every router depends on `caller_of` (or, for WebSockets, on `socket_caller`), except those
that answer /api/v1/health/live and /api/v1/auth/login; a test walks all routes to see that it stays so. What manages
the server for everybody depends on `admin_of` too; another test sorts every route by who may call it.
"""

from typing import Annotated, Any, Final

from fastapi import Depends
from starlette.requests import HTTPConnection

from mini_claude.errors import Forbidden, Unauthorized
from mini_claude.services.identity import LOCAL, Caller, require_admin
from mini_claude.services.keys import PREFIX as KEY_PREFIX
from mini_claude.services.services import Services
from mini_claude.services.tokens import PREFIX as TOKEN_PREFIX
from mini_claude.utils.config import NO_KEY_SENTENCE
from mini_claude.web.origins import host_allowed, is_local_client

PREFIXES: Final = (KEY_PREFIX, TOKEN_PREFIX)
KEY_SENTENCE: Final = (
    "This server needs an API key, or the token of POST /api/v1/auth/login: send the header "
    "'Authorization: Bearer ...'."
)
FIRST_KEY_SENTENCE: Final = (
    "The first key or user closes the server to all who have none, so it is made on the server's own machine: "
    "`mini-claude keys create NAME` or `mini-claude users create NAME`."
)


def services_of(connection: HTTPConnection) -> Services:
    """The services that the lifespan opened."""
    services: Services = connection.app.state.services
    return services


async def _services(connection: HTTPConnection) -> Services:
    return services_of(connection)  # FastAPI asks what is not async in a thread


ServicesDep = Annotated[Services, Depends(_services)]


def request_id_of(connection: HTTPConnection) -> str:
    """The id that access.py gave this request."""
    request_id: str = connection.state.request_id
    return request_id


def key_in_headers(connection: HTTPConnection) -> str | None:
    """The key or token in `Authorization: Bearer` or `x-api-key`; never one in the URL, which ends up in logs."""
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return connection.headers.get("x-api-key")


async def caller_with_key(services: Services, key: str | None) -> Caller:
    """Whose key, or token, this is. Raises `Unauthorized`."""
    if key is None:
        raise Unauthorized(KEY_SENTENCE)
    return await services.credentials.caller(key)


def local_caller(connection: HTTPConnection, services: Services) -> Caller:
    """The caller of a server without keys and users. Raises `Unauthorized` or `Forbidden` (an unknown Host name)."""
    settings = services.settings
    if not settings.allow_unauthenticated_network and not is_local_client(connection.scope):
        raise Unauthorized(NO_KEY_SENTENCE)
    if not host_allowed(connection.headers.get("host"), connection.url.scheme, settings):
        raise Forbidden(
            "This server does not answer to that Host name: call it by its address, or add the name to allowed_hosts.",
            code="host_not_allowed",
        )
    return LOCAL


def require_own_machine(connection: HTTPConnection, caller: Caller) -> None:
    """Raise `Forbidden` where somebody elsewhere, let in without a key, would make the first key or user."""
    if caller.is_local and not is_local_client(connection.scope):
        raise Forbidden(FIRST_KEY_SENTENCE, code="first_key_is_local")


def address_of(connection: HTTPConnection) -> str:
    """From where the connection comes, as far as is known."""
    return connection.client.host if connection.client is not None else "unknown"


async def caller_of(connection: HTTPConnection, services: ServicesDep) -> Caller:
    """Who is calling: on a server with keys or users the owner of what was sent, else the local user."""
    if await services.credentials.needed():
        return await caller_with_key(services, key_in_headers(connection))
    return local_caller(connection, services)


CallerDep = Annotated[Caller, Depends(caller_of)]


async def admin_of(caller: CallerDep) -> Caller:
    """Who is calling, where that is an admin. Raises `Forbidden`."""
    return require_admin(caller)


AdminDep = Annotated[Caller, Depends(admin_of)]
ADMIN_ONLY: Final = Depends(admin_of)  # for routes that need not know which admin it is
ADMIN_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    403: {"description": "The caller is a user (code admin_only)."}
}


def key_in_subprotocols(connection: HTTPConnection) -> str | None:
    """The key or token among the offered WebSocket subprotocols: browsers cannot set headers on a WebSocket."""
    offered: list[str] = connection.scope.get("subprotocols", [])
    return next((name for name in offered if name.startswith(PREFIXES)), None)


async def socket_caller(connection: HTTPConnection, services: ServicesDep) -> Caller | None:
    """Like `caller_of` for a WebSocket; None where the key must come in the first message."""
    if not await services.credentials.needed():
        return local_caller(connection, services)
    key = key_in_headers(connection) or key_in_subprotocols(connection)
    return None if key is None else await caller_with_key(services, key)


SocketCallerDep = Annotated[Caller | None, Depends(socket_caller)]
