"""`mini-claude backup` and `mini-claude restore`."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mini_claude.data.backup import restore_backup, write_backup
from mini_claude.utils.config import Settings

console = Console()


def backup(to: Annotated[Path, typer.Argument(help="The file to write, for example backup.tar.gz.")]) -> None:
    """Write conversations, keys, datasets, jobs and adapters to a file; the server may go on."""
    num_bytes = write_backup(Settings(), to)
    console.print(f"Wrote {to} ({num_bytes / 1e6:,.1f} MB). Keep it as you would keep the conversations.", markup=False)


def restore(source: Annotated[Path, typer.Argument(metavar="FROM", help="A file that backup wrote.")]) -> None:
    """Unpack a backup into an empty data directory; then start the server on it."""
    settings = Settings()
    facts = restore_backup(settings, source)
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.created_at))
    console.print(f"Restored what was backed up on {made} into {settings.data_dir}.", markup=False, soft_wrap=True)
