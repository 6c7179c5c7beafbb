"""A data directory as one file: conversations, keys, feedback, datasets, jobs and adapters. Models are made anew.

The database is copied as it is at one moment, also while a server runs. Files are copied after it: none that it names
is missing but one that was deleted meanwhile, and then its row was on the way out too.
"""

import gzip
import json
import os
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from mini_claude.errors import Conflict, InvalidRequest, StorageError
from mini_claude.utils.config import Settings

FORMAT: Final = 1
DATABASE: Final = "mini-claude.db"
FOLDERS: Final = ("datasets", "jobs", "adapters")
_MANIFEST: Final = "backup.json"  # the first member, so that it is read without reading all
_CHUNK_BYTES: Final = 1 << 20
_MAX_MANIFEST: Final = 65_536  # bytes


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """What a backup says of itself; `created_at` is Unix time, `version` that of Mini-Claude."""

    format: int
    version: str
    created_at: float


def write_backup(settings: Settings, target: Path) -> int:
    """Write the data directory to `target`, whole or not at all; the number of its bytes.

    Only the owner may read the file: conversations and hashes of keys are in it. Raises `InvalidRequest`, `Conflict`
    where the target is there already, and `StorageError`.
    """
    database = _database_file(settings)
    if target.exists():
        raise Conflict(f"{target} is there already; choose another name.", param="target")
    with _storage_errors(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part, snapshot = Path(folder, "part"), Path(folder, DATABASE)
        _copy_database(database, snapshot)
        manifest = Path(folder, _MANIFEST)
        manifest.write_text(json.dumps(asdict(BackupFacts(FORMAT, version("mini-claude"), time.time()))))
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=3) as archive:
                archive.add(manifest, _MANIFEST)
                archive.add(snapshot, DATABASE)
                for name in FOLDERS:
                    _add_folder(archive, settings.data_dir / name, settings.data_dir)
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
        return target.stat().st_size


def restore_backup(settings: Settings, archive: Path) -> BackupFacts:
    """Unpack a backup into a data directory that holds no database yet; what it says of itself.

    Raises `InvalidRequest` for a file that is none, `Conflict` for a directory in use, and `StorageError`.
    """
    database = _database_file(settings, must_exist=False)
    if database.exists():
        raise Conflict(
            f"{settings.data_dir} holds data already; restore into an empty data_dir (MINI_CLAUDE_DATA_DIR).",
            param="data_dir",
        )
    with _storage_errors():
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=settings.data_dir) as folder:
            facts = _unpack(archive, Path(folder))
            for name in FOLDERS:
                if Path(folder, name).is_dir():
                    Path(folder, name).rename(settings.data_dir / name)
            Path(folder, DATABASE).rename(database)  # last: where it is, all is
    return facts


def _database_file(settings: Settings, *, must_exist: bool = True) -> Path:
    file = settings.data_dir / DATABASE
    if settings.effective_database_url != f"sqlite:///{file}":
        raise InvalidRequest(
            "The database is not the one in data_dir: back it up with its own tools (pg_dump), and copy "
            f"{', '.join(FOLDERS)} from data_dir.",
            param="database_url",
        )
    if must_exist and not file.exists():
        raise InvalidRequest(f"There is nothing to back up in {settings.data_dir}.", param="data_dir")
    return file


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)


def _add_folder(archive: tarfile.TarFile, folder: Path, root: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            archive.add(path, str(path.relative_to(root)), recursive=False)
        except FileNotFoundError:  # a checkpoint that gave way to the next
            continue


def _unpack(archive: Path, folder: Path) -> BackupFacts:
    try:
        with gzip.open(archive) as whole:  # to the end, where the checksum is: the archive's own end comes before it
            while whole.read(_CHUNK_BYTES):
                pass
        with tarfile.open(archive, "r:gz") as source:
            first = source.next()
            content = None if first is None or first.name != _MANIFEST else source.extractfile(first)
            if content is None:
                raise ValueError("it does not begin with its description")
            facts = BackupFacts(**json.loads(content.read(_MAX_MANIFEST)))
            if facts.format != FORMAT:
                raise ValueError(f"it has format {facts.format}, and this version reads {FORMAT}")
            source.extractall(folder, filter="data")
        if not (folder / DATABASE).is_file():
            raise ValueError("it holds no database")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{archive} is not a whole backup of Mini-Claude: {error}.", param="archive") from error
    return facts


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"The disk or a file did not do its part: {error}.") from error
