"""`mini-claude keys ...`: who may call the server."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final, Literal

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mini_claude.data.door import DoorRepository
from mini_claude.data.keys import KeyRepository
from mini_claude.data.records import Limits
from mini_claude.errors import InvalidRequest
from mini_claude.services.keys import KeyService
from mini_claude.terminal.database import open_database
from mini_claude.terminal.limit_options import Limit, NewLimit, Reset, changed, told, words_of
from mini_claude.utils.config import Settings

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, limit, revoke.")
console = Console()
_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([dhm])")
_UNIT_SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60}
_NO_ADMIN: Final = (
    "No admin gets in now, so nobody can load models or make keys over it; "
    "`mini-claude keys create NAME --role admin` makes one."
)


@contextmanager
def open_keys(settings: Settings) -> Iterator[KeyService]:
    """The key service straight on the database: no server is needed."""
    with open_database(settings) as database:
        yield KeyService(KeyRepository(database), DoorRepository(database))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for your own memory.")],
    role: Annotated[
        Literal["user", "admin"] | None,
        typer.Option(help="An admin manages the server for everybody.", show_default="user; admin where none is"),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="How long it opens the server, as in 30d, 12h or 45m.")] = None,
    requests_per_minute: Limit = None,
    requests_per_day: Limit = None,
    tokens_per_minute: Limit = None,
    tokens_per_day: Limit = None,
    concurrent_replies: Limit = None,
) -> None:
    """Make a key and show it, once. From the first key on, every request needs one."""
    ends = None if expires is None else time.time() + seconds_of(expires)
    limits = Limits(requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, concurrent_replies)
    with open_keys(Settings()) as keys:
        key, plain = asyncio.run(keys.create(name, role, ends, limits))
        has_admin = asyncio.run(keys.has_admin())
    console.print(plain, markup=False, highlight=False)
    words = ["Keep it: it is not shown again. Clients send it as `Authorization: Bearer ...`."]
    if role is None and key.role == "admin":
        words.append("It is an admin's key, since there was none; for others make users' keys.")
    if ends is not None:
        words.append(f"It expires at {date_of(ends)}.")
    if not has_admin:
        words.append(_NO_ADMIN)
    Console(stderr=True).print(" ".join(words), markup=False)


def seconds_of(span: str) -> int:
    """A span of days, hours or minutes, as in 30d, 12h or 45m. Raises `InvalidRequest`."""
    parts = _SPAN.fullmatch(span)
    if parts is None:
        raise InvalidRequest(
            f"--expires {span[:80]!r} is no span of time: write a number and d, h or m, as in 30d.", param="expires"
        )
    return int(parts[1]) * _UNIT_SECONDS[parts[2]]


@app.command("list")
def list_keys() -> None:
    """Show all keys (never the keys themselves): whose, what they may do, and whether they still open the server."""
    key_id, role, created, state = (Column(name, no_wrap=True) for name in ("id", "role", "created", "state, end"))
    name = Column("name, begins with, own limits", overflow="fold")  # alone in being narrower where the terminal is
    table = Table(key_id, name, role, created, state, box=None, pad_edge=False)
    now = time.time()
    with open_keys(Settings()) as keys:
        for key in asyncio.run(keys.list()):
            ended = key.revoked_at or key.expires_at
            words = [key.state(now), *([date_of(ended)] if ended else [])]
            cells = (date_of(key.created_at), " ".join(words))
            described = Text("\n".join([key.name, key.prefix, *words_of(key.limits)]))
            table.add_row(key.id, described, key.role, *(cell.replace(" ", "\n") for cell in cells))
    console.print(table)


@app.command()
def limit(
    name: Annotated[str, typer.Argument(help="The key's name, or its id.")],
    requests_per_minute: NewLimit = None,
    requests_per_day: NewLimit = None,
    tokens_per_minute: NewLimit = None,
    tokens_per_day: NewLimit = None,
    concurrent_replies: NewLimit = None,
    reset: Reset = False,
) -> None:
    """Change how much a key may ask for."""
    given = Limits(requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, concurrent_replies)
    with open_keys(Settings()) as keys:
        key = asyncio.run(keys.named(name))
        key = asyncio.run(keys.set_limits(key.id, changed(key.limits, given, reset=reset)))
    console.print(f"{key.name}: {told(key.limits)}", markup=False)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id that `list` shows.")]) -> None:
    """Refuse a key from now on."""
    with open_keys(Settings()) as keys:
        asyncio.run(keys.revoke(key_id))
    console.print(f"revoked {key_id}", markup=False)


def date_of(seconds: float) -> str:
    """A time as it is here."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
