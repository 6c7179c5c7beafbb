"""`mini-claude keys ...`: who may call the server."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mini_claude.data.database import Database
from mini_claude.data.keys import KeyRepository
from mini_claude.services.keys import KeyService
from mini_claude.utils.config import Settings

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")
console = Console()


@contextmanager
def open_keys(settings: Settings) -> Iterator[KeyService]:
    """The key service straight on the database: no server is needed."""
    database = Database(settings.effective_database_url)
    try:
        database.migrate()
        yield KeyService(KeyRepository(database))
    finally:
        database.close()


@app.command()
def create(name: Annotated[str, typer.Argument(help="Whose key it is, for your own memory.")]) -> None:
    """Make a key and show it, once. From the first key on, every request needs one."""
    with open_keys(Settings()) as keys:
        _, plain = asyncio.run(keys.create(name))
    console.print(plain, markup=False, highlight=False)
    Console(stderr=True).print("Keep it: it is not shown again. Clients send it as `Authorization: Bearer ...`.")


@app.command("list")
def list_keys() -> None:
    """Show all keys (never the keys themselves)."""
    table = Table(Column("id", min_width=32), "name", "begins with", "created", "revoked", box=None, pad_edge=False)
    with open_keys(Settings()) as keys:
        for key in asyncio.run(keys.list()):
            revoked = _date(key.revoked_at) if key.revoked_at else ""
            table.add_row(key.id, Text(key.name), key.prefix, _date(key.created_at), revoked)
    console.print(table)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id that `list` shows.")]) -> None:
    """Refuse a key from now on."""
    with open_keys(Settings()) as keys:
        asyncio.run(keys.revoke(key_id))
    console.print(f"revoked {key_id}", markup=False)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
