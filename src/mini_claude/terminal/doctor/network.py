"""The port, who could come in by it, what limits and proxies need, and the server itself."""

import errno

import httpx

from mini_claude.data.door import DoorRepository
from mini_claude.errors import MiniClaudeError
from mini_claude.services.limits import redis_windows
from mini_claude.terminal.doctor.finding import Finding
from mini_claude.terminal.doctor.stored import existing_database
from mini_claude.terminal.server import ServerClient, bind_error, is_loopback
from mini_claude.utils.config import Settings


def check_port(settings: Settings) -> Finding:
    """It is free, or a Mini-Claude has it."""
    error = bind_error(settings)
    where = f"{settings.host}:{settings.port}"
    if error is None:
        return Finding("ok", f"{where} is free")
    if error.errno == errno.EADDRINUSE and ServerClient(settings).is_up():
        return Finding("ok", f"Mini-Claude listens on {where}")
    return Finding(
        "error", f"{where} cannot be used: {error.strerror}", "set MINI_CLAUDE_PORT (and _HOST) to another one"
    )


def check_open_door(settings: Settings) -> Finding:
    """Whoever can reach the address needs a key."""
    if is_loopback(settings.host):
        return Finding("ok", f"{settings.host}: this machine only")
    make = "mini-claude keys create NAME"
    try:
        with existing_database(settings) as database:
            is_shut = database is not None and DoorRepository(database).is_shut()
    except MiniClaudeError as error:
        return Finding(
            "error", f"{settings.host} is open to others, and keys and users cannot be read: {error.message}", make
        )
    if is_shut:
        return Finding("ok", f"{settings.host} is open to others, and every request needs a key or a sign-in")
    if settings.allow_unauthenticated_network:
        return Finding("warning", f"whoever reaches {settings.host} may do everything: no key and no user exists", make)
    return Finding("error", f"no key and no user exists, so the server does not start on {settings.host}", make)


def check_shared_limits(settings: Settings) -> Finding:
    """Redis answers, where it counts."""
    url = settings.plain_limits_url
    if url is None:
        return Finding("ok", "counted on this machine")
    fix = "start Redis there, or unset MINI_CLAUDE_LIMITS_URL to count on this machine"
    try:
        answers = redis_windows(url).check()
    except MiniClaudeError as error:
        return Finding("error", error.message, fix)
    return Finding("ok", "Redis answers") if answers else Finding("error", "Redis does not answer", fix)


def check_server(settings: Settings) -> Finding:
    """Whether one runs and would answer a chat now."""
    client = ServerClient(settings)
    if not client.is_up():
        return Finding("ok", "none runs", "mini-claude serve")
    try:
        answer = client.http.get("/api/v1/health", timeout=15.0)
        health = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return Finding("error", f"it is alive and does not say how it is: {type(error).__name__}", _logs(settings))
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Finding("warning", "it runs and wants a key to say more", "set MINI_CLAUDE_API_KEY")
    if answer.is_success:
        return Finding("ok", f"ready, version {health['version']}")
    parts = {name: health.get(name) for name in ("server", "database", "supervisor", "default_model_state")}
    wrong = ", ".join(f"{name}: {state}" for name, state in parts.items() if state not in ("ok", "ready", None))
    return Finding("warning" if wrong.endswith("loading") else "error", f"not ready: {wrong}", _logs(settings))


def _logs(settings: Settings) -> str:
    return f"look into {settings.logs_dir}"
