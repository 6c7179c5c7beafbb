"""`mini-claude users ...`: who may sign in with a name and a password."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mini_claude.data.door import DoorRepository
from mini_claude.data.preferences import PreferenceRepository
from mini_claude.data.records import Limits
from mini_claude.data.sessions import SessionRepository
from mini_claude.data.users import UserRepository
from mini_claude.errors import InvalidRequest
from mini_claude.services.users import UserService
from mini_claude.terminal.database import open_database
from mini_claude.terminal.keys import date_of
from mini_claude.terminal.limit_options import Limit, NewLimit, Reset, changed, told, words_of
from mini_claude.utils.config import Settings

app = typer.Typer(no_args_is_help=True, help="Users: create, list, disable, enable, role, password, limit, rm.")
console = Console()
Name = Annotated[str, typer.Argument(help="What the user signs in with.")]
Role = Literal["user", "admin"]


@contextmanager
def open_users(settings: Settings) -> Iterator[UserService]:
    """The user service straight on the database: no server is needed."""
    with open_database(settings) as database:
        sessions, preferences = SessionRepository(database), PreferenceRepository(database)
        yield UserService(UserRepository(database), sessions, preferences, DoorRepository(database))


@app.command()
def create(
    name: Name,
    role: Annotated[
        Role | None, typer.Option(help="An admin manages the server for everybody.", show_default="user; else admin")
    ] = None,
    requests_per_minute: Limit = None,
    requests_per_day: Limit = None,
    tokens_per_minute: Limit = None,
    tokens_per_day: Limit = None,
    concurrent_replies: Limit = None,
) -> None:
    """Make a user; the password is asked for, or read from standard input. From then on everybody has to sign in."""
    limits = Limits(requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, concurrent_replies)
    with open_users(Settings()) as users:
        user = asyncio.run(users.create(name, ask_password(), role, limits))
    words = "an admin, since there was none" if role is None and user.role == "admin" else f"role: {user.role}"
    console.print(f"made {user.name} ({words})", markup=False)


@app.command("list")
def list_users() -> None:
    """Show all users: what they may do, and whether they may sign in."""
    name = Column("name, own limits", overflow="fold")
    table = Table(name, "role", "state", Column("created", no_wrap=True), box=None, pad_edge=False)
    with open_users(Settings()) as users:
        for user in asyncio.run(users.list()):
            described = Text("\n".join([user.name, *words_of(user.limits)]))
            table.add_row(described, user.role, user.state, date_of(user.created_at))
    console.print(table)


@app.command()
def disable(name: Name) -> None:
    """Refuse a user from now on, tokens included. What is theirs stays."""
    with open_users(Settings()) as users:
        asyncio.run(users.disable(_id(users, name)))
    console.print(f"disabled {name}", markup=False)


@app.command()
def enable(name: Name) -> None:
    """Let a disabled user sign in again."""
    with open_users(Settings()) as users:
        asyncio.run(users.enable(_id(users, name)))
    console.print(f"enabled {name}", markup=False)


@app.command("role")
def change_role(name: Name, role: Annotated[Role, typer.Argument(help="What the user is from now on.")]) -> None:
    """Make a user an admin, or a user again."""
    with open_users(Settings()) as users:
        asyncio.run(users.set_role(_id(users, name), role))
    console.print(f"{name} is {'an admin' if role == 'admin' else 'a user'}", markup=False)


@app.command()
def password(name: Name) -> None:
    """Give a user a new password; it is asked for, or read from standard input. All tokens of theirs end."""
    with open_users(Settings()) as users:
        user_id = _id(users, name)
        asyncio.run(users.set_password(user_id, ask_password()))
    console.print(f"{name} has a new password", markup=False)


@app.command()
def limit(
    name: Name,
    requests_per_minute: NewLimit = None,
    requests_per_day: NewLimit = None,
    tokens_per_minute: NewLimit = None,
    tokens_per_day: NewLimit = None,
    concurrent_replies: NewLimit = None,
    reset: Reset = False,
) -> None:
    """Change how much a user may ask for."""
    given = Limits(requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, concurrent_replies)
    with open_users(Settings()) as users:
        user = asyncio.run(users.named(name))
        user = asyncio.run(users.set_limits(user.id, changed(user.limits, given, reset=reset)))
    console.print(f"{user.name}: {told(user.limits)}", markup=False)


@app.command()
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a user and what was said: conversations, feedback, preferences. Adapters stay, all may use them."""
    with open_users(Settings()) as users:
        user_id = _id(users, name)
        if not yes:
            typer.confirm(f"Delete {name} and all conversations of theirs?", abort=True)
        asyncio.run(users.remove(user_id))
    console.print(f"removed {name}", markup=False)


def ask_password() -> str:
    """From the terminal, twice and without an echo; else the first line of standard input. Raises `InvalidRequest`."""
    if sys.stdin.isatty():
        asked: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return asked
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise InvalidRequest("There is no password on standard input: write it there as one line.", param="password")
    return line


def _id(users: UserService, name: str) -> str:
    return asyncio.run(users.named(name)).id
