"""`mini-claude datasets ...` against a running server."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets as hub
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from mini_claude.errors import InvalidRequest, MiniClaudeError, PayloadTooLarge
from mini_claude.terminal import datasets
from mini_claude.terminal.datasets import upload
from mini_claude.terminal.server import ServerClient
from mini_claude.utils.config import Settings

from .conftest import RunningSite, SetEnvironment

ROWS = [["Hi", "Yo"], ["Hi"], ["Hi", "Yo"], ["A" * 20, "B" * 100]]


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "console", Console(width=200))


@pytest.fixture(autouse=True)
def _server(site: RunningSite, data_dir: Path, set_environment: SetEnvironment) -> None:
    set_environment(port=site.settings.port)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "My Talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def run(*words: str) -> Result:
    return CliRunner().invoke(datasets.app, list(words))


def shown(*words: str) -> str:
    """The output of a command that succeeds."""
    result = run(*words)
    assert result.exception is None, result.exception
    return result.output


def refusal(*words: str) -> MiniClaudeError:
    """The error of a command that fails; `mini-claude` shows its sentence."""
    result = run(*words)
    assert isinstance(result.exception, MiniClaudeError), result.output
    return result.exception


def test_a_file_is_added_listed_shown_and_removed(file: Path) -> None:
    said = shown("add", "talks", str(file))
    assert "talks: 4 rows of dialogue in jsonl" in said
    assert "broken rows: 1" in said
    assert "row 2, line 2: it has no turn of the assistant" in said
    assert "mini-claude datasets show talks" in said
    listed = shown("list").splitlines()
    assert listed[0].split() == ["name", "format", "file", "rows", "broken", "size"]
    assert listed[1].split() == ["talks", "dialogue", "jsonl", "4", "1", str(file.stat().st_size), "B"]
    assert "4 rows of dialogue" in shown("show", "talks")
    assert shown("rm", "talks") == "removed talks\n"
    assert len(shown("list").splitlines()) == 1


def test_with_a_model_the_tokens_that_are_learned_are_in_colour(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown("add", "talks", str(file))
    monkeypatch.setattr(datasets, "console", Console(width=200, force_terminal=True, color_system="standard"))
    said = shown("show", "talks", "--model", "default", "--rows", "1", "--max-length", "64")
    sample = said.split("row 1: 8 tokens")[-1]
    assert written_in("32", sample) == "Yo<|end|>"
    assert written_in("2", sample) == "<|user|>Hi<|end|><|assistant|>"


def written_in(colour: str, said: str) -> str:
    """What stands behind this code of the terminal."""
    pieces = (piece.partition("m") for piece in said.split("\x1b[")[1:])
    return "".join(text for code, _, text in pieces if code == colour)


def test_the_report_tells_lengths_cuts_and_duplicates(file: Path) -> None:
    shown("add", "talks", str(file))
    said = shown("show", "talks", "--model", "default", "--rows", "0", "--max-length", "64")
    assert "examples for smollm2-135m: 3" in said
    assert "cut to 64 tokens: 1 examples, which lose 60 tokens; the longest has 124" in said
    assert "rows that repeat an earlier one: 1 (3 = 1)" in said
    assert said.count("row 2, line 2: it has no turn") == 1
    bars = [line.split() for line in said.splitlines() if line.startswith("up to")]
    assert [bar[:4] for bar in bars] == [["up", "to", "8", "2"], ["up", "to", "128", "1"]]
    assert len(bars[0][4]) == 2 * len(bars[1][4])


def test_what_a_dataset_holds_cannot_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil.jsonl"
    path.write_text(json.dumps(["Hi", "\x1b]0;owned\x07[bold]:smile:"]) + "\n")
    shown("add", "evil", str(path))
    said = shown("show", "evil", "--model", "default")
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "[bold]:smile:" in said


def test_the_servers_own_sentence_is_shown(file: Path, tmp_path: Path) -> None:
    assert "cannot name a dataset" in refusal("add", "Bad Name", str(file)).message
    assert "no dataset 'nothing'" in refusal("show", "nothing").message
    assert "no dataset 'nothing'" in refusal("rm", "nothing").message
    shown("add", "talks", str(file))
    assert "no model 'nothing'" in refusal("show", "talks", "--model", "nothing").message
    (tmp_path / "odd.jsonl").write_text('{"question": "x"}\n')
    assert "has 'question'" in refusal("add", "odd", str(tmp_path / "odd.jsonl")).message


@pytest.mark.parametrize("source", ["nowhere.jsonl", "/", ""])
def test_a_file_that_cannot_be_read_is_named(data_dir: Path, source: str) -> None:
    error = refusal("add", "x", source)
    assert isinstance(error, InvalidRequest)
    assert "cannot be read" in error.message


def test_an_upload_without_a_name_is_called_like_its_file(site: RunningSite, file: Path) -> None:
    assert upload(ServerClient(site.settings), file, None)["name"] == "my-talks"


def test_the_key_of_the_settings_is_used(site: RunningSite, file: Path, set_environment: SetEnvironment) -> None:
    key = site.new_key()
    assert "API key" in refusal("list").message
    set_environment(api_key=key)
    shown("add", "talks", str(file))
    assert "talks" in shown("list")


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that has this folder under every id."""
    folder = tmp_path / "hub"
    folder.mkdir()
    original = hub.load_dataset_builder

    def load_dataset_builder(source: str) -> Any:
        assert source == "Qwen/talks"
        return original(str(folder))

    monkeypatch.setattr(hub, "load_dataset_builder", load_dataset_builder)
    return folder


def rows(text: str) -> str:
    return json.dumps({"prompt": "Hi", "completion": text, "id": 7}) + "\n"


def test_a_dataset_of_the_hub_is_written_out_and_uploaded(hub_folder: Path) -> None:
    (hub_folder / "train.jsonl").write_text(rows("Yo") * 3)
    (hub_folder / "test.jsonl").write_text(rows("Ha") * 2)
    assert "one: 3 rows of prompt_completion in jsonl" in shown("add", "one", "hub:Qwen/talks")
    assert "two: 2 rows of prompt_completion in jsonl" in shown("add", "two", "hub:Qwen/talks:test")
    error = refusal("add", "three", "hub:Qwen/talks:nope")
    assert "no split 'nope'" in error.message


def test_what_is_larger_than_a_dataset_may_be_is_not_fetched_whole(
    hub_folder: Path, set_environment: SetEnvironment
) -> None:
    (hub_folder / "train.jsonl").write_text(rows("Yo") * 100)
    set_environment(max_dataset_bytes=1024)
    assert isinstance(refusal("add", "one", "hub:Qwen/talks"), PayloadTooLarge)


def test_a_dataset_of_something_else_than_text_is_refused(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "load_dataset_builder", lambda source: SimpleNamespace(name="webdataset"))
    assert "webdataset" in refusal("add", "one", "hub:Qwen/talks").message


@pytest.mark.parametrize("source", ["hub:", "hub:Qwen", "hub:Qwen/", "hub:/x", "hub:a/b/c", "hub:../..", "hub:Qwen/.."])
def test_what_is_no_hub_id_is_refused(hub_folder: Path, source: str) -> None:
    assert "is no hub id" in refusal("add", "one", source).message


def test_only_trusted_accounts_are_fetched_from(hub_folder: Path, set_environment: SetEnvironment) -> None:
    assert "hub_owners" in refusal("add", "one", "hub:stranger/talks").message
    assert Settings().hub_owners
