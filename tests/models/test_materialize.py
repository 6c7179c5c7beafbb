import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mini_claude.errors import Forbidden, InvalidRequest, MiniClaudeError, ModelLoadError, StorageError
from mini_claude.models.catalog import BUILTIN
from mini_claude.models.materialize import is_materialized, materialize, source_gguf
from mini_claude.types import ModelSource, ModelSpec

COMMIT = "c0ffee"
HUB_SPEC = ModelSpec("tiny", "causal_lm", (ModelSource("hub", "owner/tiny"),))


def make(spec: ModelSpec, models_dir: Path, *, allow_download: bool = True) -> Path:
    return materialize(spec, models_dir, allow_download=allow_download, hub_owners=("owner",))


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that holds the tiny model; the calls it gets."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **options: Any) -> Any:
        calls.append({"repo_id": repo_id, **options})
        if options.get("dry_run"):
            sizes = (path.stat().st_size for path in tiny_model.iterdir())
            return [SimpleNamespace(file_size=size, commit_hash=COMMIT) for size in sizes]
        shutil.copytree(tiny_model, options["local_dir"], dirs_exist_ok=True)
        (options["local_dir"] / ".cache" / "huggingface").mkdir(parents=True)
        return str(options["local_dir"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_hub_models_become_real_files_of_the_allowed_kinds(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = make(HUB_SPEC, tmp_path)
    assert folder == tmp_path / "tiny"
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert not (folder / ".cache").exists()
    for call in hub:
        assert call["repo_id"] == "owner/tiny"
        assert not any(pattern.endswith((".bin", ".py", "*", ".pt")) for pattern in call["allow_patterns"])
        assert "*.safetensors" in call["allow_patterns"]
    assert [call.get("revision") for call in hub] == [None, COMMIT]  # what was listed, though it changes meanwhile
    assert is_materialized(HUB_SPEC, tmp_path)
    make(HUB_SPEC, tmp_path, allow_download=False)
    assert len(hub) == 2  # a dry run and the download; nothing the second time


def test_without_permission_to_download_the_command_is_named(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="mini-claude models pull tiny"):
        make(HUB_SPEC, tmp_path, allow_download=False)
    assert hub == []
    assert not is_materialized(HUB_SPEC, tmp_path)


def test_other_owners_are_refused_before_any_request(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    spec = ModelSpec("tiny", "causal_lm", (ModelSource("hub", "stranger/tiny"),))
    with pytest.raises(Forbidden, match="stranger"):
        make(spec, tmp_path)
    assert hub == []


def test_offline_gives_one_sentence_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repo_id: str, **options: Any) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelLoadError, match=r"no connection.*mini-claude models pull tiny"):
        make(HUB_SPEC, tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_a_full_disk_is_noticed_before_downloading(
    hub: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(StorageError, match=r"needs 6\d MB.* 1 MB are free") as caught:
        make(HUB_SPEC, tmp_path)
    assert caught.value.code == "disk_full"
    assert [call.get("dry_run") for call in hub] == [True]


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(
    hub: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="full") as caught:
        make(HUB_SPEC, tmp_path)
    assert caught.value.code == "disk_full"
    assert [path.name for path in tmp_path.iterdir()] == [".tiny.lock"]


def test_what_a_killed_process_left_is_replaced(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / ".tiny.part").mkdir()
    (tmp_path / ".tiny.part" / "evil.bin").write_bytes(b"x")
    (tmp_path / "tiny").mkdir()  # not complete: it does not say what it was made from
    assert (make(HUB_SPEC, tmp_path) / "model.safetensors").exists()
    assert not (tmp_path / ".tiny.part").exists()


def test_a_name_registered_for_another_source_is_made_anew(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    make(HUB_SPEC, tmp_path)
    other = ModelSpec("tiny", "causal_lm", (ModelSource("hub", "owner/other"),))
    assert not is_materialized(other, tmp_path)
    make(other, tmp_path)
    assert json.loads((tmp_path / "tiny" / "made_from.json").read_text())["location"] == "owner/other"


def test_registered_folders_are_used_where_they_are(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec("mine", "causal_lm", (ModelSource("folder", str(tiny_model)),))
    assert is_materialized(spec, tmp_path)
    assert make(spec, tmp_path) == tiny_model
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ModelSource("package", "no-such-package-here/x.gguf"), "not installed"),
        (ModelSource("package", "pytest/x.gguf"), "has no file"),
        (ModelSource("gguf", "/nowhere/x.gguf"), "is not there"),
        (ModelSource("folder", "/nowhere"), "not a folder"),
    ],
)
def test_each_missing_source_says_what_to_do(tmp_path: Path, source: ModelSource, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        make(ModelSpec("m", "causal_lm", (source,)), tmp_path)


def test_later_sources_are_tried_and_all_reasons_given(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    missing = ModelSource("gguf", "/nowhere/x.gguf")
    assert make(ModelSpec("tiny", "causal_lm", (missing, *HUB_SPEC.sources)), tmp_path).is_dir()
    with pytest.raises(ModelLoadError, match=r"gguf: .*is not there.*folder: .*not a folder"):
        make(ModelSpec("m", "causal_lm", (missing, ModelSource("folder", "/nowhere"))), tmp_path)


def test_damaged_gguf_is_refused_before_converting(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelLoadError, match="truncated or damaged"):
        make(ModelSpec("m", "causal_lm", (ModelSource("gguf", str(path)),)), tmp_path)


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (RuntimeError("I/O error: No space left on device (os error 28)"), StorageError, "is full"),
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "is full"),
        (ValueError("GGUF model with architecture klingon is not supported yet."), ModelLoadError, "klingon"),
    ],
)
def test_conversions_that_fail_say_why(
    gguf_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    kind: type[MiniClaudeError],
    words: str,
) -> None:
    def convert_gguf(*args: Path) -> None:
        raise failure

    monkeypatch.setattr("mini_claude.models.gguf_conversion.convert_gguf", convert_gguf)
    with pytest.raises(kind, match=words):
        make(ModelSpec("m", "causal_lm", (ModelSource("gguf", str(gguf_file)),)), tmp_path / "models")
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".m.lock"]


def test_names_that_are_paths_are_refused(tmp_path: Path) -> None:
    for name in ("../x", "/etc", "a/b", "..", "x\0"):
        with pytest.raises(InvalidRequest):
            make(ModelSpec(name, "causal_lm", HUB_SPEC.sources), tmp_path)
    assert list(tmp_path.iterdir()) == []


MAKE_COUNTED = """
import pathlib, shutil, sys
import huggingface_hub
from mini_claude.models.materialize import materialize
from mini_claude.types import ModelSource, ModelSpec

tiny_model, models_dir, log = map(pathlib.Path, sys.argv[1:])

def snapshot_download(repo_id, **options):
    if options.get("dry_run"):
        return []
    with log.open("a") as file:
        file.write("download\\n")
    shutil.copytree(tiny_model, options["local_dir"], dirs_exist_ok=True)

huggingface_hub.snapshot_download = snapshot_download
spec = ModelSpec("tiny", "causal_lm", (ModelSource("hub", "owner/tiny"),))
materialize(spec, models_dir, allow_download=True, hub_owners=("owner",))
"""


def test_two_processes_at_once_make_a_model_once(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE_COUNTED, *map(str, (tiny_model, tmp_path / "models", tmp_path / "log"))]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "download\n"


def test_the_embedded_model_is_float32_safetensors_with_a_template(smollm2_folder: Path) -> None:
    assert is_materialized(BUILTIN[0], smollm2_folder.parent)
    config = json.loads((smollm2_folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert "<|im_start|>" in (smollm2_folder / "chat_template.jinja").read_text()


def test_the_gguf_that_a_folder_was_made_from_is_found_while_it_is_there(tmp_path: Path, gguf_file: Path) -> None:
    def made_from(kind: str, location: str) -> Path:
        (tmp_path / "made_from.json").write_text(json.dumps({"kind": kind, "location": location}))
        return tmp_path

    assert source_gguf(tmp_path) is None
    assert source_gguf(made_from("gguf", str(gguf_file))) == gguf_file
    packaged = source_gguf(made_from("package", BUILTIN[0].sources[0].location))
    assert packaged is not None
    assert packaged.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert source_gguf(made_from("package", "no-such-distribution/x.gguf")) is None
    assert source_gguf(made_from("hub", "owner/tiny")) is None
    assert source_gguf(made_from("gguf", str(tmp_path / "gone.gguf"))) is None
