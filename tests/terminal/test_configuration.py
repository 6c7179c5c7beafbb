"""`mini-claude config`: the table of settings."""

import io
from typing import Any

import pytest
from pydantic import SecretStr
from rich.console import Console

from mini_claude.terminal.configuration import print_settings, shown
from mini_claude.utils.config import Settings

from .conftest import SetEnvironment


def printed(settings: Settings, **options: Any) -> str:
    screen = io.StringIO()
    print_settings(Console(file=screen, width=60, **options), settings)
    return screen.getvalue()


@pytest.fixture(autouse=True)
def _no_settings_of_the_developers(set_environment: SetEnvironment) -> None:
    """Defaults are defaults here."""


def test_every_setting_is_on_one_line_with_its_meaning_below() -> None:
    settings = Settings(hub_owners=("me", "you"))
    lines = printed(settings).splitlines()
    for name, field in Settings.model_fields.items():
        number = lines.index(f"{name} = {shown(getattr(settings, name))}")
        assert lines[number + 1] == f"    {field.description}"
        assert field.description


def test_secrets_are_masked() -> None:
    settings = Settings(
        api_key=SecretStr("mc-hidden"),
        database_url=SecretStr("postgresql://me:hidden@host/name"),
        limits_url=SecretStr("redis://:hidden@host"),
    )
    text = printed(settings)
    assert "hidden" not in text
    assert {"api_key = ********", "database_url = ********", "limits_url = ********"} <= set(text.splitlines())


@pytest.mark.parametrize(
    ("value", "text"), [(None, "(unset)"), ((), "(none)"), (("a", "b"), "a, b"), (0.5, "0.5"), (False, "False")]
)
def test_values_are_shown_as_people_write_them(value: object, text: str) -> None:
    assert shown(value) == text


def test_only_what_differs_from_its_default_is_bold() -> None:
    text = printed(Settings(port=9000, allowed_hosts=("a",)), force_terminal=True, color_system="standard")
    bold = {line.removeprefix("\x1b[1m").partition(" ")[0] for line in text.splitlines() if line.startswith("\x1b[1m")}
    assert bold == {"port", "allowed_hosts"}


def test_text_in_brackets_is_no_markup() -> None:
    assert "allowed_hosts = [red]x[/red]" in printed(Settings(allowed_hosts=("[red]x[/red]",)))
