"""`mini-claude keys ...`: what is shown, and what never is."""

import asyncio
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import text
from typer.testing import CliRunner, Result

from mini_claude.data.database import Database
from mini_claude.data.records import ApiKey, Limits
from mini_claude.errors import InvalidRequest, NotFound, Unauthorized
from mini_claude.terminal import keys
from mini_claude.terminal.limit_options import words_of
from mini_claude.utils.config import Settings

STATES = ("active", "active", "expired", "revoked")


@pytest.fixture(autouse=True)
def _console_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "console", Console(width=80))


def run(*words: str) -> Result:
    return CliRunner().invoke(keys.app, list(words))


def create(name: str = "laptop", *options: str) -> str:
    """A new key, as `create` shows it."""
    result = run("create", name, *options)
    assert result.exception is None
    return result.stdout.removesuffix("\n")


def words(result: Result) -> str:
    """What is told beside the key, in one line."""
    assert result.exception is None
    return " ".join(result.stderr.split())


def listed() -> str:
    result = run("list")
    assert result.exception is None
    return result.output


def stored() -> list[ApiKey]:
    """All keys, oldest first."""
    with keys.open_keys(Settings()) as service:
        return list(asyncio.run(service.list()))


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


def test_the_first_key_is_an_admins_and_says_so_and_the_next_is_a_users(data_dir: Path) -> None:
    first, second = run("create", "mine"), run("create", "guest")
    assert "It is an admin's key" in words(first)
    assert "admin" not in words(second)
    assert [key.role for key in stored()] == ["admin", "user"]


def test_a_server_without_an_admins_key_is_told_how_to_get_one(data_dir: Path) -> None:
    assert "--role admin" in words(run("create", "guest", "--role", "user"))
    assert "It is an admin's key" not in words(run("create", "mine", "--role", "admin"))  # as was asked for
    assert [key.role for key in stored()] == ["user", "admin"]


@pytest.mark.parametrize(("span", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("45m", 2_700)])
def test_a_key_expires_after_the_span_that_was_given(data_dir: Path, span: str, seconds: int) -> None:
    before = time.time()
    result = run("create", "guest", "--expires", span)
    (key,) = stored()
    assert key.expires_at is not None
    assert before + seconds <= key.expires_at <= time.time() + seconds
    assert time.strftime("%Y-%m-%d %H:%M", time.localtime(key.expires_at)) in words(result)


@pytest.mark.parametrize(
    "span", ["", "30", "d", "0d", "-1d", "1.5h", "30 d", "30days", "1w", "\u0663d", "9999999d", "999999d"]
)
def test_what_is_no_span_or_too_long_a_one_makes_no_key(data_dir: Path, span: str) -> None:
    result = run("create", "guest", f"--expires={span}")
    assert isinstance(result.exception, InvalidRequest)
    assert result.exception.param in ("expires", "expires_at")
    assert stored() == []


def test_the_list_tells_roles_and_which_keys_still_open_the_server(data_dir: Path) -> None:
    for name, options in (("mine", ()), ("guest", ("--expires", "30d")), ("late", ("--expires", "1h")), ("gone", ())):
        create(name, *options)
    late, gone = stored()[2:]
    with keys.open_keys(Settings()) as service:
        asyncio.run(service.revoke(gone.id))
    database = Database(Settings().effective_database_url)
    with database.write() as session:
        session.execute(text("UPDATE api_keys SET expires_at = 86400.0 * 365 WHERE id = :id"), {"id": late.id})
    database.close()
    entries = re.split(r"\b[0-9a-f]{32}\b", " ".join(listed().split()))[1:]
    expected = zip(("mine", "guest", "late", "gone"), ("admin", "user", "user", "user"), STATES, strict=True)
    for entry, parts in zip(entries, expected, strict=True):
        assert set(parts) <= set(entry.split())
    assert re.search(r"1971-01-01|1970-12-31", entries[2])  # the time at which it expired, here


def test_an_expired_key_opens_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = create("guest", "--expires", "1m")
    assert opens(key)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert not opens(key)


def test_a_key_gets_its_limits_and_the_list_shows_them(data_dir: Path) -> None:
    create("free")
    create("guest", "--requests-per-minute", "20", "--tokens-per-day", "1000000", "--concurrent-replies", "0")
    free, guest = stored()
    assert free.limits == Limits()
    assert guest.limits == Limits(requests_per_minute=20, tokens_per_day=1_000_000, concurrent_replies=0)
    entries = re.split(r"\b[0-9a-f]{32}\b", " ".join(listed().split()))[1:]
    shown = ["20 req/min", "1M tok/day", "any at once"]
    assert words_of(guest.limits) == shown
    assert "tok/day" not in entries[0]
    assert {"20", "req/min", "1M", "tok/day", "any", "once"} <= set(entries[1].split())
    assert words_of(Limits(1_500, 2_000, 999, 0, 1)) == [
        *("1500 req/min", "2k req/day", "999 tok/min", "any tok/day", "1 at once"),
    ]


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_what_is_no_limit_makes_no_key(data_dir: Path, value: str) -> None:
    assert run("create", "guest", f"--requests-per-day={value}").exit_code == 2
    assert stored() == []
    result = run("create", "guest", f"--requests-per-day={10**13}")
    assert isinstance(result.exception, InvalidRequest)
    assert result.exception.param == "requests_per_day"


def test_the_limits_of_a_key_are_changed_by_its_name_and_the_rest_stays(data_dir: Path) -> None:
    create("guest", "--requests-per-minute", "20", "--tokens-per-day", "1000")
    result = run("limit", "guest", "--requests-per-minute", "5", "--concurrent-replies", "0")
    assert result.output.strip() == "guest: 5 req/min, 1k tok/day, any at once"
    assert stored()[0].limits == Limits(requests_per_minute=5, tokens_per_day=1000, concurrent_replies=0)
    run("limit", stored()[0].id, "--reset", "--tokens-per-minute", "9")
    assert stored()[0].limits == Limits(tokens_per_minute=9)
    assert run("limit", "guest", "--reset").output.strip() == "guest: what the settings say"


def test_which_key_and_which_limit_have_to_be_said(data_dir: Path) -> None:
    create("guest")
    create("guest")
    two = run("limit", "guest", "--reset").exception
    assert isinstance(two, InvalidRequest)
    assert all(key.id in two.message for key in stored())
    assert isinstance(run("limit", stored()[0].id).exception, InvalidRequest)
    assert isinstance(run("limit", "nobody", "--reset").exception, NotFound)
    run("revoke", stored()[0].id)
    assert run("limit", "guest", "--reset").exception is None  # the other one is meant
