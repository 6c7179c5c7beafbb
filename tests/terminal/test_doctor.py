"""`mini-claude doctor` on machines that are really broken: each state is made, none is pretended."""

import asyncio
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mini_claude.cli import app
from mini_claude.data.database import Database
from mini_claude.terminal.doctor import installation
from mini_claude.terminal.doctor.command import CHECKS
from mini_claude.terminal.doctor.finding import Finding
from mini_claude.terminal.keys import open_keys
from mini_claude.utils.config import Settings

from .conftest import RunningSite, SetEnvironment

REPOSITORY = Path(__file__).parents[2]
# Root reads and writes everything, so it does without the privilege to do so.
BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def check(name: str) -> Finding:
    return CHECKS[name](Settings())


def doctor(*before: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and checks by name, of the command in a process of its own."""
    command = [*before, sys.executable, "-m", "mini_claude.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["status"] == ("error" if done.returncode else report["status"])
    return done.returncode, {each["check"]: each for each in report["checks"]}


def made_database(settings: Settings) -> Path:
    database = Database(settings.effective_database_url)
    database.migrate()
    database.close()
    assert database.file is not None
    return database.file


def create_key(settings: Settings) -> None:
    with open_keys(settings) as keys:
        asyncio.run(keys.create("test"))


def test_a_new_machine_is_fine_and_each_check_is_one_line(data_dir: Path, set_environment: SetEnvironment) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    set_environment(engine="auto", port=port)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.stdout
    lines = done.stdout.splitlines()
    assert [line[8:23].strip() for line in lines] == list(CHECKS)
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert not data_dir.exists()  # a doctor changes nothing


def test_a_full_disk_is_found_and_the_other_checks_are_made(data_dir: Path) -> None:
    data_dir.mkdir()
    # A disk of 64 KB with nothing left, which goes with the process that may see it.
    script = f'mount -t tmpfs -o size=64k none "{data_dir}" && head -c 64k /dev/zero > "{data_dir}/all"; exec "$@"'
    code, checks = doctor("unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh")
    assert code == 1
    assert checks["data directory"] == {
        "check": "data directory",
        "level": "error",
        "found": f"the disk of {data_dir} is full",
        "fix": "free some space",
    }
    assert checks["disk"]["level"] == "error"
    assert checks.keys() == CHECKS.keys()


def test_a_folder_that_cannot_be_read_is_found_and_the_other_checks_are_made(data_dir: Path) -> None:
    data_dir.mkdir()
    made_database(Settings())
    data_dir.chmod(0)
    try:
        code, checks = doctor(*BOUND)
    finally:
        data_dir.chmod(0o700)
    assert code == 1
    assert checks["data directory"]["found"] == f"{data_dir} cannot be used: Permission denied"
    assert checks["database"]["level"] == "error"
    assert checks["python"]["level"] == checks["packages"]["level"] == "ok"
    assert checks.keys() == CHECKS.keys()


def test_settings_that_cannot_be_read_are_the_one_finding(data_dir: Path, set_environment: SetEnvironment) -> None:
    set_environment(port="many")
    code, checks = doctor()
    assert code == 1
    assert "Port to listen on" in checks["settings"]["found"]
    assert len(checks) == 1


def test_a_whole_database_is_told_from_a_damaged_one(data_dir: Path) -> None:
    file = made_database(Settings())
    assert check("database") == Finding("ok", "whole, and of this version")
    whole = file.read_bytes()
    file.write_bytes(whole[:8192] + b"\xff" * 4096 + whole[12288:])  # a page in the middle
    damaged = check("database")
    assert damaged.level == "error"
    assert "damaged" in damaged.found
    assert "mini-claude restore" in damaged.fix
    file.write_bytes(b"no database at all" * 1000)
    assert check("database").level == "error"
    assert check("models").level == "ok"  # what the database would have said of models is done without


def test_a_database_of_another_version_is_a_warning(data_dir: Path) -> None:
    database = Database(f"sqlite:///{made_database(Settings())}")
    with database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    database.close()
    assert check("database").level == "warning"


def test_a_model_that_is_whole_cut_short_or_gone(
    data_dir: Path, smollm2_folder: Path, set_environment: SetEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(engine="auto")
    assert "at the first start" in check("models").found
    folder = data_dir / "models" / "smollm2-135m"
    shutil.copytree(smollm2_folder, folder, copy_function=os.link)
    assert check("models").found == f"smollm2-135m: whole, in {folder}"
    weights = folder / "model.safetensors"
    start = weights.read_bytes()[:1_000_000]
    weights.unlink()
    assert f"lacks {weights.name}" in check("models").found
    weights.write_bytes(start)
    cut = check("models")
    assert (cut.level, cut.fix) == ("error", f"remove {folder}; then: mini-claude models pull smollm2-135m")
    assert "truncated" in cut.found
    set_environment(default_model="dialogpt-small")
    assert check("models") == Finding(
        "error", "dialogpt-small: no files on this machine", "mini-claude models pull dialogpt-small"
    )
    set_environment(default_model="nobody")
    assert "no default model 'nobody'" in check("models").found


def test_an_added_model_that_is_gone_is_a_warning(
    data_dir: Path, tmp_path: Path, set_environment: SetEnvironment
) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    added = CliRunner().invoke(app, ["models", "add", "mine", str(file)])
    assert added.exit_code == 0, added
    set_environment(engine="auto")
    file.unlink()
    assert check("models") == Finding("warning", "not whole or not there: mine", "mini-claude models pull mine")


def test_room_is_needed_for_the_model_and_for_checkpoints(
    data_dir: Path, set_environment: SetEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(engine="auto")
    free = shutil.disk_usage(data_dir.parent)
    for num_bytes, level in ((600_000_000, "error"), (1_000_000_000, "warning"), (9_000_000_000, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, left=num_bytes: free._replace(free=left))
        assert check("disk").level == level, num_bytes


def test_what_others_may_read_and_what_is_of_others(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir(mode=0o700)
    assert check("permissions").level == "ok"
    data_dir.chmod(0o755)
    settings = tmp_path / "own.toml"
    settings.write_text('api_key = "mc-secret"\n')
    settings.chmod(0o644)
    monkeypatch.setenv("MINI_CLAUDE_CONFIG", str(settings))
    found = check("permissions")
    assert (found.level, found.fix) == ("warning", f"chmod go= {data_dir} {settings}")
    assert "mc-secret" not in found.found
    subprocess.run(found.fix.split(), check=True)
    assert check("permissions").level == "ok"
    monkeypatch.setattr(os, "geteuid", lambda: data_dir.stat().st_uid + 1)
    assert check("permissions").found.startswith(f"of another user: {data_dir}")


def test_a_port_is_free_ours_or_somebody_elses(
    site: RunningSite, data_dir: Path, set_environment: SetEnvironment
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        set_environment(port=other.getsockname()[1])
        other.listen()
        assert check("port").level == "error"
    assert check("port").found.endswith("is free")
    assert check("server") == Finding("ok", "none runs", "mini-claude serve")
    set_environment(port=site.settings.port)
    assert check("port").found.startswith("Mini-Claude listens on")
    assert check("server").found.startswith("ready, version")
    site.new_key()
    assert check("server").fix == "set MINI_CLAUDE_API_KEY"


def test_a_door_is_open_without_a_key(data_dir: Path, set_environment: SetEnvironment) -> None:
    assert check("open door").level == "ok"
    set_environment(host="0.0.0.0")
    assert check("open door").level == "error"
    assert not data_dir.exists()
    set_environment(allow_unauthenticated_network=True)
    assert check("open door").level == "warning"
    create_key(Settings())
    assert check("open door").level == "ok"


def test_redis_that_does_not_answer_is_an_error(
    data_dir: Path, closed_port: int, set_environment: SetEnvironment
) -> None:
    assert check("limits").level == "ok"
    set_environment(limits_url=f"redis://127.0.0.1:{closed_port}/0")
    assert check("limits").level == "error"


@pytest.mark.parametrize(
    ("requirement", "level"), [("numpy>=1", "ok"), ("numpy>=999", "error"), ("no-such-package", "error")]
)
def test_packages_are_there_and_new_enough(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, requirement: str, level: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: [requirement, "unwanted; extra == 'dev'"])
    found = check("packages")
    assert found.level == level
    assert level == "ok" or requirement.partition(">")[0] in found.found


def test_a_version_that_was_not_tested_is_a_warning_where_it_matters(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = installation.tested_versions(REPOSITORY / "constraints.txt")
    assert tested.keys() >= set(installation._TESTED_EXACTLY)
    file = tmp_path / "constraints.txt"
    file.write_text("transformers==1.2.3\nnumpy==1.2.3\n")
    monkeypatch.setattr(installation, "_CONSTRAINTS", file)
    found = check("packages")
    assert found.level == "warning"
    assert "transformers" in found.found
    assert "numpy" not in found.found


def test_llama_cpp_that_cannot_be_called_is_an_error(
    data_dir: Path, tmp_path: Path, set_environment: SetEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(engine="llama_cpp", native_llama_cpp=False)
    assert check("llama.cpp").level == "ok"
    broken = tmp_path / "xllamacpp"
    broken.mkdir()
    (broken / "__init__.py").write_text("")
    (broken / "xllamacpp.so").write_bytes(b"no library")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    found = check("llama.cpp")
    assert found.level == "error"
    assert "cannot be called" in found.found


def test_a_gpu_that_is_asked_for_has_to_be_there(data_dir: Path, set_environment: SetEnvironment) -> None:
    set_environment(device="cuda:63")
    assert check("gpu").level == "error"
