"""`mini-claude adapters ...` and `mini-claude verify` against a running server."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from mini_claude.data.models import ModelRepository
from mini_claude.errors import InvalidRequest, MiniClaudeError
from mini_claude.terminal import adapters
from mini_claude.types import ModelSource, ModelSpec

from ..training.tiny_adapters import load_adapted, save_adapter, save_base
from ..training.tiny_gguf import save_gguf
from .conftest import RunningSite, SetEnvironment


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "console", Console(width=200))


@pytest.fixture
def base(site: RunningSite, data_dir: Path, set_environment: SetEnvironment, tmp_path: Path) -> Path:
    """The model `tiny`, which the server knows."""
    set_environment(port=site.settings.port)
    folder = save_base(tmp_path / "tiny")
    source = ModelSource("folder", str(folder))
    ModelRepository(site.services.database).add(ModelSpec("tiny", "causal_lm", (source,)))
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "peft", size=0.1)


def run(*words: str, command: Callable[..., None] | None = None) -> Result:
    app = adapters.app
    if command is not None:
        app = typer.Typer()
        app.command()(command)
    return CliRunner().invoke(app, list(words))


def shown(*words: str, command: Callable[..., None] | None = None) -> str:
    """The output of a command that succeeds."""
    result = run(*words, command=command)
    assert result.exception is None, result.exception
    return result.output


def refusal(*words: str, command: Callable[..., None] | None = None) -> MiniClaudeError:
    """The error of a command that fails; `mini-claude` shows its sentence."""
    result = run(*words, command=command)
    assert isinstance(result.exception, MiniClaudeError), result.output
    return result.exception


def test_an_adapter_is_imported_verified_shown_exported_and_removed(base: Path, adapter: Path, tmp_path: Path) -> None:
    save_gguf(base, tmp_path / "base.gguf")
    said = shown("import", str(adapter), "--name", "bot", "--model", "tiny")
    assert "imported tiny:bot@1" in said
    assert "mini-claude verify tiny:bot@1" in said
    assert shown("list").splitlines()[1].split() == ["tiny:bot@1", "import", "not", "verified"]
    said = shown("tiny:bot", command=adapters.verify)
    assert "parity: passed. All forms agree" in said
    assert [line.split()[1] for line in said.splitlines() if line.startswith(("engine", "merged", "gguf"))] == [
        "passed"
    ] * 6
    assert shown("show", "tiny:bot@1") == said
    assert shown("list").splitlines()[1].split() == ["tiny:bot@1", "import", "passed"]

    shown("export", "tiny:bot", str(tmp_path / "out" / "peft"))
    assert load_adapted(base, tmp_path / "out" / "peft").peft_config
    shown("export", "tiny:bot", str(tmp_path / "merged"), "--format", "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()
    shown("export", "tiny:bot", str(tmp_path / "bot.gguf"), "--format", "gguf-merged")
    assert (tmp_path / "bot.gguf").read_bytes().startswith(b"GGUF")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["peft"]

    assert "Say which version" in refusal("rm", "tiny:bot").message
    assert shown("rm", "tiny:bot@1") == "removed tiny:bot@1\n"
    assert len(shown("list").splitlines()) == 1
    assert "no adapter" in refusal("show", "tiny:bot").message


def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(adapter: Path, tmp_path: Path) -> None:
    shown("import", str(adapter), "--name", "bot", "--model", "tiny")
    (tmp_path / "there").mkdir()
    assert "exists already" in refusal("export", "tiny:bot", str(tmp_path / "there")).message
    before = set(tmp_path.iterdir())
    assert "GGUF" in refusal("export", "tiny:bot", str(tmp_path / "new"), "--format", "gguf-merged").message
    assert "format" in refusal("export", "tiny:bot", str(tmp_path / "new"), "--format", "onnx").message
    assert set(tmp_path.iterdir()) == before
    assert "cannot be written" in refusal("export", "tiny:bot", str(adapter / "adapter_config.json" / "x")).message


def test_a_folder_that_is_no_adapter_is_named(adapter: Path, tmp_path: Path) -> None:
    error = refusal("import", str(tmp_path), "--name", "bot")
    assert isinstance(error, InvalidRequest)
    assert "adapter_config.json" in error.message
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"surprise": 1}))
    assert "surprise" in refusal("import", str(adapter), "--name", "bot", "--model", "tiny").message
    assert "no model 'nothing'" in refusal("import", str(adapter), "--name", "bot", "--model", "nothing").message


def test_an_adapter_without_effect_does_not_pass(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "zeros", size=0.0)
    shown("import", str(adapter), "--name", "bot", "--model", "tiny")
    assert "no effect" in refusal("tiny:bot", command=adapters.verify).message
    assert "FAILED" in shown("list")


def test_files_that_are_gone_are_told(site: RunningSite, adapter: Path) -> None:
    shown("import", str(adapter), "--name", "bot", "--model", "tiny")
    (folder,) = (path for path in site.settings.adapters_dir.iterdir() if path.is_dir())
    shutil.rmtree(folder)
    assert "files are gone" in refusal("tiny:bot", command=adapters.verify).message
    assert shown("rm", "tiny:bot@1") == "removed tiny:bot@1\n"
