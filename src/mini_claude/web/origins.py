"""From where this server may be called: addresses, Host names and web origins. Pure functions.

Without keys, being on this machine is the only credential. A web page that the user happens to visit runs on this
machine too, so two checks keep it out: `Origin` tells on pages of other sites, and `Host` on DNS rebinding, where
the attacker's own name suddenly resolves to 127.0.0.1.
"""

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.types import Scope

from mini_claude.utils.config import Settings

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def _is_ip(host: str, *, loopback: bool = False) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return not loopback or address.is_loopback


def is_local_client(scope: Scope) -> bool:
    """Whether the peer is this machine. A server on a Unix socket gives no address and counts as not local."""
    client = scope.get("client")
    return client is not None and _is_ip(client[0], loopback=True)


def _host_and_port(authority: str, scheme: str) -> tuple[str, int | None] | None:
    """("name", port) of "name:port" or "[v6]:port"; None when it is neither."""
    try:
        parts = urlsplit(f"{scheme}://{authority}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.netloc != authority or "@" in authority:
        return None
    return host, port if port is not None else DEFAULT_PORTS.get(scheme)


def host_allowed(host_header: str | None, scheme: str, settings: Settings) -> bool:
    """Whether a server without keys may be called by this Host name.

    Where other machines may call without a key, any address in figures is fine too: rebinding needs a name.
    """
    parsed = _host_and_port(host_header or "", scheme)
    if parsed is None:
        return False
    host = parsed[0]
    names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
    if host in names or _is_ip(host, loopback=True):
        return True
    return settings.allow_unauthenticated_network and _is_ip(host)


def origin_allowed(origin: str | None, host_header: str | None, settings: Settings) -> bool:
    """Whether a browser page of this origin may call: no origin (not a page), the server's own, or a listed one."""
    if origin is None or origin in settings.allowed_origins:
        return True
    scheme, separator, authority = origin.partition("://")
    if not separator or scheme not in ("http", "https"):
        return False
    own = _host_and_port(host_header or "", scheme)
    return own is not None and _host_and_port(authority, scheme) == own


def cors_headers(origin: str | None, settings: Settings) -> dict[str, str]:
    """What lets a page of a listed origin read the answer. Keys travel in a header, so no cookies are involved."""
    if origin is None or origin not in settings.allowed_origins:
        return {}
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "x-request-id, retry-after, "
        "ratelimit-limit, ratelimit-remaining, ratelimit-reset",
        "vary": "Origin",
    }


PREFLIGHT_HEADERS: Final = {
    "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
    "access-control-allow-headers": "authorization, content-type, idempotency-key, x-api-key",
    "access-control-max-age": "600",
}
