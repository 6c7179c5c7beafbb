"""The data directory, who may read it, the room on its disk, and the database in it."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mini_claude.errors import MiniClaudeError, ModelLoadError
from mini_claude.models.materialize import is_materialized, local_gguf, unpacked_bytes
from mini_claude.terminal.doctor.finding import Finding
from mini_claude.terminal.doctor.models import default_spec
from mini_claude.terminal.doctor.stored import existing_database
from mini_claude.training.arguments import TrainingArguments
from mini_claude.utils.config import Settings, config_file
from mini_claude.utils.files import is_full

LEAST_FREE_BYTES: Final = 100_000_000  # for the database, logs and uploads
_TRIED_BYTES: Final = 65_536  # an empty file can be made on a full disk
_SECRETS: Final = ("api_key", "database_url", "limits_url")
_SHOWN: Final = 3


def check_data_directory(settings: Settings) -> Finding:
    """Files can be written, read back and removed there."""
    folder = settings.data_dir
    existing = _existing(folder)
    choose = "set MINI_CLAUDE_DATA_DIR to a folder that you may write to"
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".doctor-") as file:
            file.write(bytes(_TRIED_BYTES))
            file.flush()
            os.fsync(file.fileno())
        next(existing.iterdir(), None)
    except OSError as error:
        if is_full(error):
            return Finding("error", f"the disk of {existing} is full", "free some space")
        return Finding("error", f"{existing} cannot be used: {error.strerror}", f"chown it to yourself, or {choose}")
    return Finding("ok", str(folder) if existing == folder else f"{folder} (is made at the first start)")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def check_permissions(settings: Settings) -> Finding:
    """Nobody else may read conversations and secrets, and everything is ours."""
    folder = settings.data_dir
    foreign = [str(path) for path in _entries(folder) if path.lstat().st_uid != os.geteuid()]
    if foreign:
        shown = ", ".join(foreign[:_SHOWN]) + (f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else "")
        return Finding("error", f"of another user: {shown}", f"sudo chown -R {os.geteuid()} {folder}")
    open_paths = [path for path in _private(settings) if path.exists() and _mode(path) & 0o077]
    if open_paths:
        shown = ", ".join(f"{path} ({_mode(path):o})" for path in open_paths)
        return Finding("warning", f"others may open {shown}", f"chmod go= {' '.join(map(str, open_paths))}")
    return Finding("ok", "only you may read what is private")


def _entries(folder: Path) -> Iterator[Path]:
    """The folder, what is in it, and what is in its own folders; all below would take long."""
    if folder.is_dir():
        yield folder
        yield from folder.iterdir()
        yield from (path for each in folder.iterdir() if each.is_dir() for path in each.iterdir())


def _private(settings: Settings) -> Iterator[Path]:
    """What only its owner may read: the data, and a settings file with a secret in it."""
    yield settings.data_dir
    file = config_file()
    if file.is_file() and any(line.partition("=")[0].strip() in _SECRETS for line in file.read_text().splitlines()):
        yield file


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def check_disk(settings: Settings) -> Finding:
    """Room for the default model, if it is still to be made, and for a training job's checkpoints."""
    existing = _existing(settings.data_dir)
    free = shutil.disk_usage(existing).free
    to_make = _bytes_to_make(settings)
    checkpoints = TrainingArguments().max_checkpoint_bytes
    found = f"{free / 1e9:,.1f} GB free"
    fix = f"free some space on the disk of {existing}, or set MINI_CLAUDE_DATA_DIR"
    if free < to_make + LEAST_FREE_BYTES:
        return Finding("error", f"{found}, and {(to_make + LEAST_FREE_BYTES) / 1e9:,.1f} GB are needed", fix)
    if free < to_make + checkpoints:
        return Finding("warning", f"{found}; checkpoints of a training may take {checkpoints / 1e9:,.1f} GB", fix)
    return Finding("ok", found)


def _bytes_to_make(settings: Settings) -> int:
    """What unpacking the default model will take; 0 where it is there, or nobody knows."""
    spec = default_spec(settings)
    if spec is None or settings.engine == "echo" or is_materialized(spec, settings.models_dir):
        return 0
    files = (file for source in spec.sources if (file := local_gguf(source)) is not None)
    try:
        return max(map(unpacked_bytes, files), default=0)
    except ModelLoadError:
        return 0  # check_model says what is wrong with the file


def check_database(settings: Settings) -> Finding:
    """It can be opened, nothing in it is damaged, and its tables are those of this version."""
    if settings.database_in_memory:
        return Finding(
            "warning", "in memory: everything is gone when the server ends", "unset MINI_CLAUDE_DATABASE_URL"
        )
    try:
        with existing_database(settings) as database:
            if database is None:
                return Finding("ok", "none yet; it is made at the first start")
            state = database.examine()
    except MiniClaudeError as error:
        return Finding("error", error.message, _mend(settings))
    if state.damage:
        return Finding("error", f"it is damaged: {'; '.join(state.damage)}", _mend(settings))
    if not state.migrated:
        found = "its tables are of another version"
        return Finding(
            "warning", found, "mini-claude backup FILE; then mini-claude serve brings an older one up to date"
        )
    return Finding("ok", "whole, and of this version")


def _mend(settings: Settings) -> str:
    if settings.database_url is not None:
        return "see that MINI_CLAUDE_DATABASE_URL is right and that its server runs"
    return f"stop the server, move {settings.data_dir} away, and: mini-claude restore BACKUP"
