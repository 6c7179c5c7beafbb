"""Faults out of log files: codes and ids, never anybody's words."""

import json
from pathlib import Path

from mini_claude.services.recent_errors import TAIL_BYTES, recent_errors

SECRET = "my password is 1234"


def log(folder: Path, name: str, *lines: object) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / f"{name}.log").write_text(text)


def line(second: int, level: str = "error", **rest: object) -> dict[str, object]:
    return {
        "timestamp": f"2026-01-01T00:00:{second:02}Z",
        "level": level,
        "event": "engine.crashed",
        "logger": "mini_claude.x",
        **rest,
    }


def test_the_latest_faults_of_all_processes_come_first(tmp_path: Path) -> None:
    log(tmp_path, "api-0", line(1, "warning", code="full"), line(3, model="m", pid=7), line(4, "info"))
    log(tmp_path, "supervisor-0", line(2), "no JSON", "[1]", line(0))
    found = recent_errors(tmp_path, 3)
    assert [(error.at[-3:], error.process) for error in found] == [
        ("03Z", "api-0"),
        ("02Z", "supervisor-0"),
        ("01Z", "api-0"),
    ]
    assert [dict(error.ids) for error in found] == [{"model": "m", "pid": "7"}, {}, {"code": "full"}]
    assert (found[0].level, found[0].event, found[2].level) == ("error", "engine.crashed", "warning")


def test_words_of_a_line_are_never_told(tmp_path: Path) -> None:
    log(
        tmp_path,
        "api-0",
        line(1, event=SECRET, logger="urllib3"),
        line(1, event="hunter2", logger="urllib3"),
        line(2, error=SECRET, exception=SECRET, reason=SECRET, code=SECRET, request_id=[SECRET]),
    )
    found = recent_errors(tmp_path, 10)
    assert [error.event for error in found] == ["engine.crashed", "urllib3", "urllib3"]
    assert SECRET not in str(found)
    assert "hunter2" not in str(found)


def test_of_a_large_log_only_the_end_is_read(tmp_path: Path) -> None:
    padding = [line(1, "info", padding="x" * 1000)] * (TAIL_BYTES // 1000 + 1)
    log(tmp_path, "api-0", line(1), *padding, line(2))
    assert [error.at[-3:] for error in recent_errors(tmp_path, 10)] == ["02Z"]


def test_without_logs_there_are_no_faults(tmp_path: Path) -> None:
    assert recent_errors(tmp_path / "nothing", 10) == []


def test_our_own_event_and_the_class_of_an_error_are_told(tmp_path: Path) -> None:
    log(tmp_path, "api-0", line(1, event="unexpected_error", error="RuntimeError", cause="Hello"))
    (found,) = recent_errors(tmp_path, 1)
    assert (found.event, dict(found.ids)) == ("unexpected_error", {"error": "RuntimeError"})
