"""When to save: every so many steps, every so many minutes, or as often as it stays cheap."""

from typing import Final

from mini_claude.training.arguments import TrainingArguments

MAX_SECONDS_LOST: Final = 120.0
MAX_SHARE_OF_TIME: Final = 0.02
_FIRST_SECONDS: Final = 20.0  # until a save has been measured
_MIN_SECONDS: Final = 5.0


class SaveInterval:
    """Decides after each step. Times are seconds of any clock that only goes forward.

    Chosen by itself, the interval is what keeps saving under `MAX_SHARE_OF_TIME`, and never so long that a crash could
    lose more than `MAX_SECONDS_LOST`. Where both cannot be had, because a save takes longer than 2.4 seconds, it is the
    second that holds.
    """

    def __init__(self, arguments: TrainingArguments, now: float) -> None:
        self._every_steps = arguments.save_steps
        self._seconds = arguments.save_minutes * 60.0
        self._chooses = not self._every_steps and not self._seconds
        if self._chooses:
            self._seconds = _FIRST_SECONDS
        self._saved_at = now
        self._longest_step = 0.0
        self._stepped_at = now

    def is_due(self, step: int, now: float) -> bool:
        """Whether to save now that step `step`, counted from 1, is done."""
        self._longest_step = max(self._longest_step, now - self._stepped_at)
        self._stepped_at = now
        if self._every_steps:
            return step % self._every_steps == 0
        # By the clock, what the next step would add is at stake as well.
        return now - self._saved_at + self._longest_step > self._seconds

    def saved(self, seconds: float, now: float) -> None:
        """A save that took so long is done."""
        self._saved_at = self._stepped_at = now
        if self._chooses:
            self._seconds = min(MAX_SECONDS_LOST, max(_MIN_SECONDS, seconds / MAX_SHARE_OF_TIME))
