"""Telling a living process from a dead one, and ending with one's parent."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mini_claude.runtime.liveness import ProcessIdentity, rss_bytes, terminate_with_multiprocessing_parent

from .conftest import PATIENCE_SECONDS, eventually, gone

WAIT_FOR_STDIN = "import sys; sys.stdin.read()"


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that lives until its standard input ends."""
    with subprocess.Popen([sys.executable, "-c", WAIT_FOR_STDIN], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def identity_of(pid: int) -> ProcessIdentity:
    return ProcessIdentity.of(pid)


def test_this_process_lives() -> None:
    assert ProcessIdentity.own().pid == os.getpid()
    assert ProcessIdentity.own().alive()


async def test_a_killed_process_is_dead_before_and_after_its_parent_has_noticed(
    child: "subprocess.Popen[bytes]",
) -> None:
    identity = identity_of(child.pid)
    assert identity.alive()
    child.kill()
    await eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert not identity.alive()
    child.wait()
    assert not identity.alive()


def test_a_later_process_with_the_same_pid_is_another_one(child: "subprocess.Popen[bytes]") -> None:
    identity = identity_of(child.pid)
    assert not ProcessIdentity(identity.pid, identity.started - 60).alive()
    assert identity == identity_of(child.pid)


def test_setting_the_clock_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = ProcessIdentity.own()
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time + 3600)
    assert psutil.Process().create_time() > identity.started + boot_time + 3000
    assert identity.alive()


def test_memory_is_known_of_a_living_process_only(child: "subprocess.Popen[bytes]") -> None:
    memory = rss_bytes(child.pid)
    assert memory is not None
    assert memory > 100_000
    child.kill()
    child.wait()
    assert rss_bytes(child.pid) is None


ENDS_WITH_PARENT = """
import os, threading
from mini_claude.runtime.liveness import end_with_parent

end_with_parent(lambda: os._exit(7))
print(os.getpid(), flush=True)
threading.Event().wait()
"""


def first_line(process: "subprocess.Popen[bytes]") -> int:
    """The pid that the process printed once it was ready."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_the_end_of_standard_input_ends_a_process_that_asked_for_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDS_WITH_PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        first_line(process)
        process.stdin.write(b"what a parent writes is no end")
        process.stdin.flush()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 7


async def test_kill_of_the_parent_ends_its_child() -> None:
    parent_code = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {ENDS_WITH_PARENT!r}], stdin=subprocess.PIPE).wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE) as parent:
        child_pid = first_line(parent)
        parent.kill()
        parent.wait()
        await eventually(lambda: gone(child_pid))


MULTIPROCESSING = """
import multiprocessing, os, threading
from mini_claude.runtime.liveness import terminate_with_multiprocessing_parent

def work():
    terminate_with_multiprocessing_parent()
    print(os.getpid(), flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
"""


async def test_kill_of_a_multiprocessing_parent_ends_its_child(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(MULTIPROCESSING)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        child_pid = first_line(parent)
        parent.kill()
        parent.wait()
        await eventually(lambda: gone(child_pid))


def test_a_process_that_multiprocessing_did_not_start_watches_nothing() -> None:
    before = threading.active_count()
    terminate_with_multiprocessing_parent()
    assert threading.active_count() == before
