"""Backup and restore as somebody types them."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mini_claude.cli import app
from mini_claude.data.database import Database
from mini_claude.errors import Conflict
from mini_claude.utils.config import Settings


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_a_backup_is_written_and_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINI_CLAUDE_DATA_DIR", str(tmp_path / "data"))
    database = Database(Settings().effective_database_url)
    database.migrate()
    database.close()
    target = tmp_path / "backup.tar.gz"
    assert "Wrote" in run("backup", str(target)).stdout
    again = run("restore", str(target))
    assert isinstance(again.exception, Conflict)
    monkeypatch.setenv("MINI_CLAUDE_DATA_DIR", str(tmp_path / "new"))
    assert "Restored what was backed up on" in run("restore", str(target)).stdout
    assert (tmp_path / "new" / "mini-claude.db").exists()
