"""`mini-claude users ...`: who may sign in, and how passwords come in."""

import asyncio
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from mini_claude.data.records import Limits, User
from mini_claude.errors import Conflict, InvalidRequest, NotFound, Unauthorized
from mini_claude.terminal import users
from mini_claude.terminal.database import door_is_shut
from mini_claude.utils.config import Settings

PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def _console_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "console", Console(width=80))


def run(*words: str, password: str = PASSWORD) -> Result:
    return CliRunner().invoke(users.app, list(words), input=f"{password}\n")


def told(*words: str, password: str = PASSWORD) -> str:
    result = run(*words, password=password)
    assert result.exception is None, result.exception
    return result.output


def stored() -> list[User]:
    with users.open_users(Settings()) as service:
        return list(asyncio.run(service.list()))


def signs_in(name: str, password: str = PASSWORD) -> bool:
    with users.open_users(Settings()) as service:
        try:
            asyncio.run(service.check_password(name, password))
        except Unauthorized:
            return False
        return True


def test_a_user_is_made_with_a_password_from_standard_input_that_is_never_shown(data_dir: Path) -> None:
    assert not door_is_shut(Settings())
    first = told("create", "ada")
    second = told("create", "eve", "--requests-per-minute", "20")
    assert ("an admin, since there was none" in first, "role: user" in second) == (True, True)
    assert PASSWORD not in first + second
    assert [(user.name, user.role) for user in stored()] == [("ada", "admin"), ("eve", "user")]
    assert stored()[1].limits == Limits(requests_per_minute=20)
    assert signs_in("ada")
    assert door_is_shut(Settings())


def test_a_password_is_asked_for_twice_on_a_terminal_and_not_shown(data_dir: Path) -> None:
    main, worker = pty.openpty()
    code = "from mini_claude.terminal.users import app; app(['create', 'ada'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=worker, stdout=worker, stderr=worker, close_fds=True)
    os.close(worker)
    seen = b""
    for question in (b"Password: ", b"Repeat for confirmation: "):
        while question not in seen:
            seen += os.read(main, 1024)
        os.write(main, PASSWORD.encode() + b"\n")
    assert process.wait(60) == 0
    seen += os.read(main, 65536)
    os.close(main)
    assert b"made ada" in seen
    assert PASSWORD.encode() not in seen
    assert signs_in("ada")


def test_disabling_enabling_and_another_password(data_dir: Path) -> None:
    told("create", "ada")
    told("disable", "ada")
    assert not signs_in("ada")
    told("enable", "Ada")
    assert signs_in("ada")
    told("password", "ada", password="another good password")
    assert (signs_in("ada"), signs_in("ada", "another good password")) == (False, True)
    assert [user.generation for user in stored()] == [2]  # of tokens: one end by each of two


def test_role_and_limits_of_a_user_are_changed(data_dir: Path) -> None:
    told("create", "ada", "--tokens-per-day", "1000")
    told("role", "ada", "user")
    assert "5 req/min, 1k tok/day" in told("limit", "ada", "--requests-per-minute", "5")
    assert (stored()[0].role, stored()[0].limits) == ("user", Limits(requests_per_minute=5, tokens_per_day=1000))
    told("limit", "ada", "--reset")
    assert stored()[0].limits == Limits()


def test_the_list_tells_names_roles_states_and_limits(data_dir: Path) -> None:
    told("create", "ada")
    told("create", "eve", "--requests-per-minute", "20")
    told("disable", "eve")
    listed = told("list").split()
    assert {"ada", "admin", "active", "eve", "user", "disabled", "20", "req/min"} <= set(listed)


def test_removing_asks_first_and_frees_the_name_and_leaves_the_door_shut(data_dir: Path) -> None:
    told("create", "ada")
    assert run("rm", "ada", password="n").exit_code == 1
    assert len(stored()) == 1
    told("rm", "ada", "--yes")
    assert (stored(), signs_in("ada"), door_is_shut(Settings())) == ([], False, True)
    told("create", "ada")


def test_what_is_wrong_is_said_and_makes_no_user(data_dir: Path) -> None:
    assert isinstance(run("create", "two words").exception, InvalidRequest)
    assert isinstance(run("create", "ada", password="short").exception, InvalidRequest)
    assert isinstance(run("create", "ada", password="").exception, InvalidRequest)
    assert isinstance(run("disable", "ada").exception, NotFound)
    assert stored() == []
    told("create", "ada")
    assert isinstance(run("create", "ADA").exception, Conflict)
