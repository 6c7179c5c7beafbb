"""Log files: who writes which, how they rotate, and what each line carries."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from mini_claude.utils import logging as ours
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import QUIET_LOGGERS, configure_logging, get_logger

TOUCHED = (*QUIET_LOGGERS, "uvicorn", "uvicorn.error")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Logging is the process's own: give everything that `configure_logging` changes back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    loggers = {name: logging.getLogger(name) for name in TOUCHED}
    states = {
        name: (each.level, list(each.handlers), list(each.filters), each.propagate) for name, each in loggers.items()
    }
    num_slots = len(ours._held_slots)
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, (own_level, own_handlers, filters, propagate) in states.items():
        loggers[name].setLevel(own_level)
        loggers[name].handlers[:] = own_handlers
        loggers[name].filters[:] = filters
        loggers[name].propagate = propagate
    structlog.reset_defaults()
    while len(ours._held_slots) > num_slots:
        ours._held_slots.pop().close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", log_format="json")


def lines(settings: Settings, name: str = "api-0.log") -> list[dict[str, Any]]:
    """What one log file holds."""
    return [json.loads(line) for line in (settings.logs_dir / name).read_text().splitlines()]


def test_a_file_is_rotated_at_its_size_and_only_so_many_are_kept(settings: Settings) -> None:
    settings = settings.model_copy(update={"log_file_bytes": 10_000, "log_file_count": 2})
    configure_logging(settings, "api")
    log = get_logger("test")
    for number in range(600):  # about 60 kB
        log.info("filling", number=number, padding="x" * 20)
    names = sorted(path.name for path in settings.logs_dir.glob("*.log*"))
    assert names == ["api-0.log", "api-0.log.1", "api-0.log.2"]
    assert all(5_000 < (settings.logs_dir / name).stat().st_size <= 10_000 for name in names[1:])
    numbers = [line["number"] for name in reversed(names) for line in lines(settings, name)]
    assert numbers == list(range(numbers[0], 600))


def test_each_line_of_the_file_is_json_with_its_time_level_and_logger(settings: Settings) -> None:
    configure_logging(settings, "api")
    get_logger("ours").warning("over\ntwo lines", odd=Path("/ä"), count=3)
    logging.getLogger("theirs").error("%s failed", "it")
    first, second = lines(settings)
    assert (first["event"], first["level"], first["logger"]) == ("over\ntwo lines", "warning", "ours")
    assert first["count"] == 3
    assert (second["event"], second["level"], second["logger"]) == ("it failed", "error", "theirs")
    assert all(line["timestamp"].endswith("Z") for line in (first, second))


def test_an_exception_stays_on_its_line(settings: Settings) -> None:
    configure_logging(settings, "api")
    try:
        raise LookupError("gone")
    except LookupError:
        get_logger("ours").exception("broke")
        logging.getLogger("theirs").exception("broke too")
    assert ["LookupError: gone" in line["exception"] for line in lines(settings)] == [True, True]


def test_a_line_is_made_once_for_all_who_write_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    render = structlog.processors.JSONRenderer.__call__

    def counted(*arguments: Any) -> str | bytes:
        made.append(arguments[-1]["event"])
        return render(*arguments)

    monkeypatch.setattr(structlog.processors.JSONRenderer, "__call__", counted)
    configure_logging(settings, "api")
    get_logger("ours").info("hello")
    logging.getLogger("theirs").error("%s failed", "it")
    assert made == ["hello", "it failed"]
    assert [line["event"] for line in lines(settings)] == made


def test_the_request_id_is_on_every_line_of_its_request_and_on_no_other(settings: Settings) -> None:
    configure_logging(settings, "api")
    log = get_logger("ours")
    log.info("before")
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        log.info("inside")
        logging.getLogger("theirs").info("inside too")
    log.info("after")
    assert [line.get("request_id") for line in lines(settings)] == [None, "req_1", "req_1", None]


def test_libraries_that_log_whole_requests_are_heard_only_from_warnings_on(settings: Settings) -> None:
    configure_logging(settings.model_copy(update={"log_level": "debug"}), "api")
    for name in QUIET_LOGGERS:
        logging.getLogger(name).info("chatter")
        logging.getLogger(f"{name}.part").debug("chatter")
        logging.getLogger(name).warning("trouble")
    get_logger("ours").debug("detail")
    assert [line["event"] for line in lines(settings)] == ["trouble"] * len(QUIET_LOGGERS) + ["detail"]


def test_no_library_is_louder_than_the_level_that_was_asked_for(settings: Settings) -> None:
    configure_logging(settings.model_copy(update={"log_level": "error"}), "api")
    for name in (*TOUCHED, "ours"):
        logging.getLogger(name).warning("trouble")
        logging.getLogger(name).error("disaster")
    assert {line["event"] for line in lines(settings)} == {"disaster"}


def test_uvicorn_writes_through_our_handlers_and_not_a_second_time(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).addHandler(logging.StreamHandler(sys.stderr))
    configure_logging(settings, "api")
    logging.getLogger("uvicorn.error").info("Started server process")
    assert len(lines(settings)) == 1
    assert capsys.readouterr().err.count("Started server process") == 1


def test_what_uvicorn_knows_of_web_sockets_stays_with_it(settings: Settings) -> None:
    configure_logging(settings.model_copy(update={"log_level": "debug"}), "api")
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.debug("< %s", "a header or a frame")
    uvicorn.info('%s - "WebSocket %s" [accepted]', "127.0.0.1:1", "/ws/chat?key=secret")
    uvicorn.info("connection open")
    assert [line["event"] for line in lines(settings)] == ["connection open"]


def test_the_console_is_readable_when_asked_and_the_file_is_json_all_the_same(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(settings.model_copy(update={"log_format": "console"}), "api")
    get_logger("ours").info("hello", number=7)
    shown = capsys.readouterr().err
    assert "hello" in shown
    with pytest.raises(json.JSONDecodeError):
        json.loads(shown)
    assert lines(settings)[0]["number"] == 7


def test_where_nobody_watches_the_console_gets_json(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings.model_copy(update={"log_format": "auto"}), "api")
    get_logger("ours").info("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"


PROCESS = """
import sys
from pathlib import Path
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import configure_logging, get_logger

configure_logging(Settings(data_dir=Path(sys.argv[1]), log_format="json"), "api")
get_logger("test").info(sys.argv[2])
"""


def run_process(settings: Settings, event: str) -> None:
    """Another process of the same kind, from its start to its end, that logs one line."""
    subprocess.run([sys.executable, "-c", PROCESS, str(settings.data_dir), event], check=True, capture_output=True)


def test_processes_that_live_at_once_write_different_files_and_a_later_one_reuses_a_free_one(
    settings: Settings,
) -> None:
    configure_logging(settings, "api")
    get_logger("test").info("first")
    run_process(settings, "second")
    run_process(settings, "third")
    assert [line["event"] for line in lines(settings, "api-0.log")] == ["first"]
    assert [line["event"] for line in lines(settings, "api-1.log")] == ["second", "third"]


def test_each_kind_of_process_has_files_of_its_own(settings: Settings) -> None:
    configure_logging(settings, "supervisor")
    get_logger("test").info("hello")
    assert [path.name for path in settings.logs_dir.glob("*.log")] == ["supervisor-0.log"]


def test_a_data_directory_that_logging_makes_is_closed_to_other_users(settings: Settings) -> None:
    configure_logging(settings, "api")
    assert settings.data_dir.stat().st_mode & 0o777 == 0o700
