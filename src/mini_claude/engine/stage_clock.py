"""Where the time of a traced reply went: queue, prefill, decode, sampling, detokenize."""

import time


class StageClock:
    """Belongs to one sequence. All times in seconds."""

    def __init__(self) -> None:
        self._began_waiting: float | None = time.perf_counter()
        self._pending: dict[str, float] = {}
        self._is_first = True

    def scheduled(self, now: float) -> None:
        """A step that computes something of this sequence begins."""
        if self._began_waiting is not None:
            self._pending["queue"] = now - self._began_waiting
            self._began_waiting = None

    def computed(self, seconds: float) -> None:
        """Such a step took so long; its sampling is told by `sampled`."""
        stage = "prefill" if self._is_first else "decode"
        self._pending[stage] = self._pending.get(stage, 0.0) + seconds

    def sampled(self, seconds: float, overhead_seconds: float) -> None:
        """Choosing took so long, within the step; recording how is nobody's time."""
        stage = "prefill" if self._is_first else "decode"
        self._pending[stage] = max(0.0, self._pending.get(stage, 0.0) - seconds - overhead_seconds)
        self._pending["sampling"] = seconds

    def take(self, detokenize_seconds: float) -> dict[str, float]:
        """The times of the token that is complete now."""
        seconds = self._pending | {"detokenize": detokenize_seconds}
        self._pending = {}
        self._is_first = False
        return seconds
