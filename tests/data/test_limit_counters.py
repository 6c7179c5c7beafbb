"""The file in which all processes of a data directory count."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mini_claude.data.limit_counters import LimitCounters
from mini_claude.errors import StorageError

from ..clock import Clock

MINUTE = 60


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "limits.db"


@pytest.fixture(params=["file", "memory"])
def counters(request: pytest.FixtureRequest, file: Path, clock: Clock) -> Iterator[LimitCounters]:
    counters = LimitCounters(file if request.param == "file" else None, clock)
    yield counters
    counters.close()


def test_a_window_counts_until_its_end_and_the_next_begins_at_its_first_count(
    counters: LimitCounters, clock: Clock
) -> None:
    assert [counters.incr("a", MINUTE), counters.incr("a", MINUTE, 5), counters.incr("b", MINUTE)] == [1, 6, 1]
    assert (counters.get("a"), counters.get_expiry("a")) == (6, 1060.0)
    clock.now = 1059.9
    assert counters.incr("a", MINUTE, -2) == 4
    clock.now = 1060.0
    assert (counters.get("a"), counters.get_expiry("a")) == (0, 1060.0)
    clock.now = 1100.0
    assert counters.incr("a", MINUTE) == 1
    assert counters.get_expiry("a") == 1160.0


def test_windows_are_forgotten_one_or_all(counters: LimitCounters) -> None:
    for key in ("a", "b", "c"):
        counters.incr(key, MINUTE)
    assert counters.check()
    counters.clear("a")
    assert [counters.get(key) for key in "abc"] == [0, 1, 1]
    assert counters.reset() == 2
    assert counters.get("b") == 0


def test_as_many_replies_run_as_the_limit_says_all_of_a_request_or_none(counters: LimitCounters) -> None:
    assert counters.begin_replies("a", ["1", "2"], 3, 30.0)
    assert not counters.begin_replies("a", ["3", "4"], 3, 30.0)
    assert counters.num_replies("a") == 2
    assert counters.begin_replies("b", ["5"], 1, 30.0)
    counters.end_reply("1")
    assert counters.begin_replies("a", ["3", "4"], 3, 30.0)
    assert (counters.num_replies("a"), counters.num_replies("b")) == (3, 1)


def test_a_reply_of_a_process_that_was_killed_counts_until_its_time_is_over(
    counters: LimitCounters, clock: Clock
) -> None:
    assert counters.begin_replies("a", ["lost", "kept"], 2, 30.0)
    clock.now += 20
    counters.prolong_replies(["kept"], 30.0)
    clock.now += 10
    assert counters.num_replies("a") == 1
    assert counters.begin_replies("a", ["new"], 2, 30.0)
    assert not counters.begin_replies("a", ["more"], 2, 30.0)


def test_two_connections_share_counts_which_outlive_them(file: Path, clock: Clock) -> None:
    one, two = LimitCounters(file, clock), LimitCounters(file, clock)
    assert [one.incr("a", MINUTE), two.incr("a", MINUTE), one.get("a")] == [1, 2, 2]
    assert one.begin_replies("a", ["1"], 1, 30.0)
    assert not two.begin_replies("a", ["2"], 1, 30.0)
    one.close()
    two.close()
    three = LimitCounters(file, clock)
    assert three.get("a") == 2
    three.close()


def test_windows_that_ended_are_removed_when_the_file_is_opened(file: Path, clock: Clock) -> None:
    LimitCounters(file, clock).close()
    one = LimitCounters(file, clock)
    one.incr("old", MINUTE)
    clock.now += MINUTE
    one.incr("new", MINUTE)
    one.close()
    LimitCounters(file, clock).close()
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT key FROM windows").fetchall() == [("new",)]
    connection.close()


def test_threads_and_connections_that_count_at_once_lose_nothing(file: Path) -> None:
    connections = [LimitCounters(file) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda counters=counters: [counters.incr("a", MINUTE) for _ in range(50)])
        for counters in connections
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connections[0].get("a") == 200
    for counters in connections:
        counters.close()


def test_a_damaged_file_is_one_clear_error(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match=r"limits\.db in data_dir"):
        LimitCounters(file)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(StorageError, match="cannot be kept"):
        LimitCounters(tmp_path / "folder" / "limits.db")
