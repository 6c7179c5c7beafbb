"""What a backup holds comes back whole, and nothing else comes."""

import io
import json
import sqlite3
import stat
import tarfile
from pathlib import Path

import pytest

from mini_claude.data.backup import restore_backup, write_backup
from mini_claude.data.database import Database
from mini_claude.data.keys import KeyRepository
from mini_claude.data.records import ApiKey
from mini_claude.errors import Conflict, InvalidRequest
from mini_claude.utils.config import Settings

KEY = ApiKey("k" * 32, "laptop", "mc-abcdef", 1.0, "admin", None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data directory with a key, a dataset's file, a model and a log."""
    settings = Settings(data_dir=tmp_path / "data")
    database = Database(settings.effective_database_url)
    database.migrate()
    KeyRepository(database).add(KEY, "hash")
    database.close()
    for name in ("datasets/abc/data", "adapters/1/adapter_model.safetensors", "models/m/config.json", "logs/all.log"):
        file = settings.data_dir / name
        file.parent.mkdir(parents=True)
        file.write_text(name)
    return settings


def elsewhere(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "elsewhere")


def keys(settings: Settings) -> list[str]:
    database = Database(settings.effective_database_url)
    try:
        return [key.id for key in KeyRepository(database).list()]
    finally:
        database.close()


def archive(path: Path, **members: str) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content.encode())
            made.addfile(info, io.BytesIO(content.encode()))
    return path


def test_it_comes_back_whole_without_models_and_logs(settings: Settings, tmp_path: Path) -> None:
    target = tmp_path / "backup.tar.gz"
    assert write_backup(settings, target) == target.stat().st_size
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    other = elsewhere(tmp_path)
    assert restore_backup(other, target).format == 1
    assert keys(other) == [KEY.id]
    assert (other.data_dir / "datasets/abc/data").read_text() == "datasets/abc/data"
    assert (other.data_dir / "adapters/1/adapter_model.safetensors").exists()
    assert not (other.data_dir / "models").exists()
    assert not (other.data_dir / "logs").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("data", "elsewhere")] == ["backup.tar.gz"]


def test_what_a_server_has_committed_is_in_it_while_it_writes_on(settings: Settings, tmp_path: Path) -> None:
    connection = sqlite3.connect(settings.data_dir / "mini-claude.db", isolation_level=None)
    connection.execute("UPDATE api_keys SET name = 'desk'")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE api_keys SET name = 'half done'")
    write_backup(settings, tmp_path / "backup.tar.gz")
    connection.execute("ROLLBACK")
    connection.close()
    restore_backup(elsewhere(tmp_path), tmp_path / "backup.tar.gz")
    database = Database(elsewhere(tmp_path).effective_database_url)
    assert [key.name for key in KeyRepository(database).list()] == ["desk"]
    database.close()


def test_nothing_is_overwritten(settings: Settings, tmp_path: Path) -> None:
    target = tmp_path / "backup.tar.gz"
    write_backup(settings, target)
    with pytest.raises(Conflict, match="choose another name"):
        write_backup(settings, target)
    with pytest.raises(Conflict, match="holds data already"):
        restore_backup(settings, target)
    assert keys(settings) == [KEY.id]


def test_an_empty_directory_and_another_database_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nothing to back up"):
        write_backup(elsewhere(tmp_path), tmp_path / "backup.tar.gz")
    elsewhere_stored = Settings(data_dir=tmp_path, database_url="postgresql+psycopg://u:p@127.0.0.1/x")
    with pytest.raises(InvalidRequest, match="pg_dump"):
        write_backup(elsewhere_stored, tmp_path / "backup.tar.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"mini-claude__db": "x"},
        {"backup__json": "{}"},
        {"backup__json": json.dumps({"format": 2, "version": "9", "created_at": 1.0})},
        {"backup__json": json.dumps({"format": 1, "version": "9", "created_at": 1.0})},
        {"backup__json": json.dumps({"format": 1, "version": "9", "created_at": 1.0}), "../canary": "x"},
    ],
)
def test_what_is_no_backup_leaves_nothing_behind(members: dict[str, str], tmp_path: Path) -> None:
    other = elsewhere(tmp_path)
    with pytest.raises(InvalidRequest, match="not a whole backup"):
        restore_backup(other, archive(tmp_path / "made.tar.gz", **members))
    assert list(other.data_dir.iterdir()) == []
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_backup_that_was_damaged_is_refused(settings: Settings, tmp_path: Path, harm: str) -> None:
    target = tmp_path / "backup.tar.gz"
    write_backup(settings, target)
    content = bytearray(target.read_bytes())
    if harm == "cut":
        del content[-200:]
    else:
        content[len(content) // 2] ^= 0xFF
    target.write_bytes(content)
    with pytest.raises(InvalidRequest, match="not a whole backup"):
        restore_backup(elsewhere(tmp_path), target)
