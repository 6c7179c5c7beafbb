"""Where settings come from and which of them wins."""

import os
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from mini_claude.types import LoadOptions
from mini_claude.utils.config import CONFIG_FILE_VARIABLE, Settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and nothing of ours in the environment."""
    for name in list(os.environ):
        if name.startswith("MINI_CLAUDE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_arguments_beat_the_environment_beats_the_file_beats_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "mini-claude.toml", "port = 1001\nworkers = 11\nmax_waiting = 111")
    monkeypatch.setenv("MINI_CLAUDE_PORT", "1002")
    monkeypatch.setenv("MINI_CLAUDE_WORKERS", "12")
    settings = Settings(port=1003)
    assert (settings.port, settings.workers, settings.max_waiting) == (1003, 12, 111)
    assert settings.host == "127.0.0.1"


def test_the_variable_names_another_file_instead_of_the_one_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "mini-claude.toml", "port = 1001\nworkers = 11")
    monkeypatch.setenv(CONFIG_FILE_VARIABLE, str(write(folder / "other.toml", "port = 1004")))
    settings = Settings()
    assert (settings.port, settings.workers) == (1004, 1)


@pytest.mark.parametrize(
    ("text", "names"),
    [("a,b", ("a", "b")), (" a , b,, ", ("a", "b")), ("a", ("a",)), ("", ()), ("*.example,a b", ("*.example", "a b"))],
)
def test_lists_are_comma_separated_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, names: tuple[str, ...]
) -> None:
    for name in ("ALLOWED_HOSTS", "ALLOWED_ORIGINS", "HUB_OWNERS"):
        monkeypatch.setenv(f"MINI_CLAUDE_{name}", text)
    settings = Settings()
    assert settings.allowed_hosts == settings.allowed_origins == settings.hub_owners == names


def test_lists_are_lists_in_the_file(folder: Path) -> None:
    write(folder / "mini-claude.toml", 'hub_owners = ["me", "you"]\nallowed_hosts = "a, b"')
    settings = Settings()
    assert settings.hub_owners == ("me", "you")
    assert settings.allowed_hosts == ("a", "b")


def test_secrets_are_masked_wherever_settings_are_shown_or_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINI_CLAUDE_API_KEY", "mc-hidden")
    monkeypatch.setenv("MINI_CLAUDE_DATABASE_URL", "postgresql+psycopg://me:hidden@host/name")
    monkeypatch.setenv("MINI_CLAUDE_LIMITS_URL", "redis://:hidden@host")
    settings = Settings()
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "hidden" not in shown
    assert settings.api_key == SecretStr("mc-hidden")
    assert settings.effective_database_url == "postgresql+psycopg://me:hidden@host/name"
    assert settings.plain_limits_url == "redis://:hidden@host"


def test_a_secret_is_not_repeated_by_an_error_about_it(folder: Path) -> None:
    write(folder / "mini-claude.toml", 'api_key = ["mc-hidden"]')
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"] for error in caught.value.errors()] == [("api_key",)]
    assert "hidden" not in "".join(error["msg"] for error in caught.value.errors())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "0"),
        ("port", "65536"),
        ("workers", "0"),
        ("device", "tpu"),
        ("device", "cuda:x"),
        ("dtype", "int3"),
        ("quantization", "int2"),
        ("engine", "other"),
        ("log_level", "loud"),
        ("log_file_bytes", "9"),
        ("ping_seconds", "0"),
        ("max_num_seqs", "many"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MINI_CLAUDE_{name.upper()}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


def test_a_misspelt_setting_in_the_file_is_refused_by_name(folder: Path) -> None:
    write(folder / "mini-claude.toml", "prot = 9000")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert caught.value.errors()[0]["loc"] == ("prot",)


def test_everything_lives_in_the_data_directory_unless_told_otherwise(folder: Path) -> None:
    settings = Settings(data_dir=folder / "data")
    assert settings.effective_database_url == f"sqlite:///{folder}/data/mini-claude.db"
    assert settings.models_dir == folder / "data" / "models"
    assert settings.logs_dir == folder / "data" / "logs"


def test_a_tilde_in_the_file_is_the_home_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    write(folder / "mini-claude.toml", 'data_dir = "~/claude"')
    assert Settings().data_dir == folder / "home" / "claude"


def test_every_option_of_an_engine_is_taken_from_the_settings() -> None:
    settings = Settings(
        engine="echo",
        dtype="float16",
        device="cuda:1",
        quantization="nf4",
        gguf_type="f16",
        kv_cache_tokens=1000,
        max_num_seqs=3,
        max_num_batched_tokens=64,
        max_waiting=5,
        num_threads=7,
        native_llama_cpp=False,
    )
    options = settings.load_options()
    for field in fields(LoadOptions):
        assert getattr(options, field.name) == getattr(settings, field.name) != field.default


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 9000  # type: ignore[misc]
