"""How nice a process becomes, in a session of its own and in somebody else's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mini_claude.utils import priority
from mini_claude.utils.priority import lower_priority

PROGRAM = """
import os
from mini_claude.utils.priority import AUTOGROUP, lower_priority

def group_nice():  # of this session; "none" where the system has no such groups, or the session is in none
    return (AUTOGROUP.read_text().split() or ["none"])[-1] if AUTOGROUP.exists() else "none"

before = group_nice()
lower_priority(7)
print(os.nice(0), before, group_nice())
"""


@pytest.mark.parametrize("own_session", [True, False])
def test_a_session_of_its_own_is_as_nice_as_its_leader_and_another_stays(own_session: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], start_new_session=own_session, capture_output=True, text=True, check=True
    )
    nice, before, after = done.stdout.split()
    assert int(nice) >= 7
    assert after == (nice if own_session and before != "none" else before)


def test_a_busy_kernel_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[BaseException | None] = [BlockingIOError(), BlockingIOError(), None]
    written: list[str] = []

    def write_text(_: Path, text: str) -> int:
        if (error := answers.pop(0)) is not None:
            raise error
        written.append(text)
        return len(text)

    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(priority, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    monkeypatch.setattr(os, "nice", lambda nice: nice)
    lower_priority(5)
    assert written == ["5"]
