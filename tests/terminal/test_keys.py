"""`mini-claude keys ...`: what is shown, and what never is."""

import asyncio
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from mini_claude.errors import InvalidRequest, NotFound, Unauthorized
from mini_claude.terminal import keys
from mini_claude.utils.config import Settings


@pytest.fixture(autouse=True)
def _console_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "console", Console(width=80))


def run(*words: str) -> Result:
    return CliRunner().invoke(keys.app, list(words))


def create(name: str = "laptop") -> str:
    """A new key, as `create` shows it."""
    result = run("create", name)
    assert result.exception is None
    return result.stdout.removesuffix("\n")


def listed() -> str:
    result = run("list")
    assert result.exception is None
    return result.output


def opens(key: str) -> bool:
    """Whether a server on this data directory would let the key in."""
    with keys.open_keys(Settings()) as service:
        try:
            asyncio.run(service.authenticate(key))
        except Unauthorized:
            return False
        return True


def test_a_new_key_is_alone_on_standard_output_and_opens_the_server(data_dir: Path) -> None:
    result = run("create", "laptop")
    assert re.fullmatch(r"mc-[A-Za-z0-9_-]{43}\n", result.stdout)
    assert "not shown again" in result.stderr
    assert opens(result.stdout.strip())


def test_a_key_is_shown_once_and_stored_nowhere(data_dir: Path) -> None:
    key = create()
    assert key not in listed()
    assert key[:9] in listed()  # enough to recognise it
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    assert data_dir / "mini-claude.db" in files
    assert [path for path in files if key.encode() in path.read_bytes()] == []


def test_the_list_shows_ids_whole_on_a_narrow_terminal(data_dir: Path) -> None:
    create("my laptop at home, the old one")
    result = run("list")
    (key_id,) = re.findall(r"\b[0-9a-f]{32}\b", result.output)
    assert run("revoke", key_id).exception is None
    assert key_id in run("list").output  # now with the time of its end, which takes more room


def test_a_revoked_key_is_refused_and_stays_in_the_list(data_dir: Path) -> None:
    kept, lost = create("kept"), create("lost")
    with keys.open_keys(Settings()) as service:
        key_id = next(key.id for key in asyncio.run(service.list()) if key.name == "lost")
    result = run("revoke", key_id)
    assert result.output == f"revoked {key_id}\n"
    assert opens(kept)
    assert not opens(lost)
    assert "lost" in listed()


def test_an_unknown_id_is_an_error_that_names_the_list(data_dir: Path) -> None:
    error = run("revoke", "nothing").exception
    assert isinstance(error, NotFound)
    assert "mini-claude keys list" in error.message


@pytest.mark.parametrize("name", ["", " ", "x" * 201, "bell\a"])
def test_a_name_that_cannot_be_listed_makes_no_key(data_dir: Path, name: str) -> None:
    result = run("create", name)
    assert isinstance(result.exception, InvalidRequest)
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["[red]mine[/red]", "mine [old]", "[/]", ":key:"])
def test_a_name_is_shown_as_it_was_given(data_dir: Path, name: str) -> None:
    create(name)
    assert name in listed()
