"""`mini-claude models ...` on a data directory of the test's own, with and without a server."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from mini_claude.errors import Conflict, InvalidRequest, MiniClaudeError, ModelLoadError, NotFound, Unavailable
from mini_claude.models.catalog import BUILTIN
from mini_claude.terminal import models

from .conftest import RunningSite, SetEnvironment


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "console", Console(width=200))


def run(*words: str) -> Result:
    return CliRunner().invoke(models.app, list(words))


def shown(*words: str) -> str:
    """The output of a command that succeeds."""
    result = run(*words)
    assert result.exception is None, result.exception
    return result.output


def refusal(*words: str) -> BaseException:
    """The error of a command that fails; `mini-claude` shows its sentence."""
    result = run(*words)
    assert result.exit_code == 1
    assert result.exception is not None
    assert result.output == ""
    return result.exception


def rows() -> dict[str, str]:
    """What `list` shows, by name."""
    return {line.split()[0]: line for line in shown("list").splitlines()[1:]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least that counts as a model's folder."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros(4, dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has this folder under every id; the ids that were downloaded."""
    downloaded: list[str] = []

    def snapshot_download(repo_id: str, **options: Any) -> object:
        if options.get("dry_run"):
            return []
        downloaded.append(repo_id)
        return shutil.copytree(folder, options["local_dir"], dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return downloaded


def test_the_list_needs_no_server(data_dir: Path) -> None:
    assert list(rows()) == [spec.name for spec in BUILTIN]
    assert all("available" in row for row in rows().values())


def test_an_added_folder_is_listed_and_pulled_from_where_it_is(data_dir: Path, folder: Path) -> None:
    assert "mini-claude models load mine" in shown("add", "mine", str(folder), "--description", "My [/own]")
    assert "My [/own]" in rows()["mine"]
    assert str(folder) in shown("pull", "mine")
    assert not (data_dir / "models" / "mine").exists()


def test_a_relative_path_still_leads_there_from_another_directory(
    data_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    shown("add", "mine", folder.name)
    monkeypatch.chdir("/")
    assert str(folder) in shown("pull", "mine")


def test_a_hub_model_is_downloaded_once_and_removed_with_its_files(data_dir: Path, hub: list[str]) -> None:
    shown("add", "tiny", "Qwen/tiny")
    assert hub == []
    for _ in range(2):
        assert str(data_dir / "models" / "tiny") in shown("pull", "tiny")
    assert hub == ["Qwen/tiny"]
    assert (data_dir / "models" / "tiny" / "model.safetensors").is_file()
    assert shown("rm", "tiny") == "removed tiny\n"
    assert not (data_dir / "models" / "tiny").exists()
    assert "tiny" not in rows()


def test_a_file_can_be_added_when_it_is_gguf(data_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    shown("add", "mine", str(file))
    assert "mine" in rows()
    (tmp_path / "model.bin").write_bytes(b"")
    assert isinstance(refusal("add", "other", str(tmp_path / "model.bin")), InvalidRequest)


@pytest.mark.parametrize("source", ["nowhere", "/nowhere/at/all", "/nowhere", "owner/name/more", "", "/", "Qwen/"])
def test_a_source_that_is_nothing_is_refused(data_dir: Path, source: str, tmp_path: Path) -> None:
    if source == "/":
        source = str(tmp_path / "missing")
    error = refusal("add", "mine", source)
    assert isinstance(error, InvalidRequest)
    assert "no folder, no .gguf file and no hub id" in error.message
    assert "mine" not in rows()


def test_downloads_come_from_trusted_accounts_only(data_dir: Path, set_environment: SetEnvironment) -> None:
    error = refusal("add", "mine", "stranger/model")
    assert isinstance(error, InvalidRequest)
    assert "hub_owners" in error.message
    set_environment(hub_owners="stranger,Qwen")
    shown("add", "mine", "stranger/model")


@pytest.mark.parametrize(("name", "kind"), [("smollm2-135m", Conflict), ("default", Conflict), ("Up", InvalidRequest)])
def test_a_name_that_is_taken_or_impossible_is_refused(
    data_dir: Path, folder: Path, name: str, kind: type[MiniClaudeError]
) -> None:
    assert isinstance(refusal("add", name, str(folder)), kind)


def test_a_name_can_be_used_again_only_after_its_removal(data_dir: Path, folder: Path) -> None:
    shown("add", "mine", str(folder))
    assert isinstance(refusal("add", "mine", str(folder)), Conflict)
    assert shown("rm", "mine") == "removed mine\n"
    shown("add", "mine", str(folder))


def test_a_folder_of_the_user_is_never_touched(data_dir: Path, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    shown("add", "mine", str(folder))
    shown("pull", "mine")
    shown("rm", "mine")
    assert sorted(folder.rglob("*")) == before
    assert len(before) == 3


def test_a_built_in_model_loses_its_files_and_stays_in_the_list(data_dir: Path, hub: list[str]) -> None:
    assert "has no files here" in shown("rm", "dialogpt-small")
    shown("pull", "dialogpt-small")
    assert shown("rm", "dialogpt-small") == "removed dialogpt-small\n"
    assert not (data_dir / "models" / "dialogpt-small").exists()
    assert "dialogpt-small" in rows()


@pytest.mark.parametrize("command", ["pull", "rm"])
@pytest.mark.parametrize("name", ["nothing", "../..", "", "/etc"])
def test_an_unknown_name_is_not_found(data_dir: Path, command: str, name: str) -> None:
    assert isinstance(refusal(command, name), NotFound)


def test_files_that_are_no_model_are_named_when_they_are_pulled(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown("add", "mine", str(tmp_path / "empty"))
    error = refusal("pull", "mine")
    assert isinstance(error, ModelLoadError)
    assert "config.json" in error.message


def test_with_a_server_the_list_shows_what_is_loaded(
    site: RunningSite, data_dir: Path, set_environment: SetEnvironment
) -> None:
    set_environment(port=site.settings.port)
    assert shown("load", "dialogpt-small", "--dtype", "bfloat16").startswith("dialogpt-small is ready (bfloat16 on")
    assert "ready" in rows()["dialogpt-small"]
    assert "available" in rows()["smollm2-135m"]
    assert shown("unload", "dialogpt-small") == "unloaded dialogpt-small\n"
    assert "available" in rows()["dialogpt-small"]


def test_the_servers_own_sentence_is_shown_when_it_refuses(
    site: RunningSite, data_dir: Path, set_environment: SetEnvironment
) -> None:
    set_environment(port=site.settings.port)
    assert "is not loaded" in str(refusal("unload", "smollm2-135m"))
    assert "no model 'nothing'" in str(refusal("load", "nothing"))
    assert "dtype" in str(refusal("load", "smollm2-135m", "--dtype", "int3"))


def test_loading_needs_a_server(data_dir: Path) -> None:
    for command in ("load", "unload"):
        error = refusal(command, "smollm2-135m")
        assert isinstance(error, Unavailable)
        assert "mini-claude serve" in error.message
