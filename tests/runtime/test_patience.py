"""How long and for what a trainer waits."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from mini_claude.errors import StorageError, StorageUnavailable
from mini_claude.runtime import patience
from mini_claude.runtime.patience import PATIENCE_SECONDS, RETRY_SECONDS, patiently


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that a clock of our own was moved by."""
    waits: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append)
    monkeypatch.setattr(patience, "time", clock)
    return waits


def failing(error: StorageError, times: int) -> Callable[[str], str]:
    left = iter(range(times))

    def call(word: str) -> str:
        if next(left, None) is not None:
            raise error
        return word

    return call


def test_a_call_is_made_until_it_succeeds(waited: list[float]) -> None:
    assert patiently(failing(StorageUnavailable("away"), 5), "done") == "done"
    assert waited == [RETRY_SECONDS] * 5


def test_it_is_given_up_after_a_while(waited: list[float]) -> None:
    with pytest.raises(StorageUnavailable):
        patiently(failing(StorageUnavailable("away"), 10**6), "done")
    assert sum(waited) == PATIENCE_SECONDS


def test_what_no_wait_would_mend_is_raised_at_once(waited: list[float]) -> None:
    with pytest.raises(StorageError, match="full"):
        patiently(failing(StorageError("full"), 1), "done")
    assert waited == []
