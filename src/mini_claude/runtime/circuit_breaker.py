"""Stop restarting what keeps crashing."""

import time
from collections import deque
from collections.abc import Callable


class CircuitBreaker:
    """Opens after `max_crashes` within `window_seconds`; closes again when the oldest has left the window."""

    def __init__(
        self, max_crashes: int = 3, window_seconds: float = 120.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_crashes = max_crashes
        self._window_seconds = window_seconds
        self._clock = clock
        self._crashes: deque[float] = deque(maxlen=max_crashes)

    def record_crash(self) -> None:
        """Count a crash now."""
        self._crashes.append(self._clock())

    def retry_after(self) -> float | None:
        """Seconds until the next start may be tried; None while closed."""
        if len(self._crashes) < self._max_crashes:
            return None
        remaining = self._crashes[0] + self._window_seconds - self._clock()
        return remaining if remaining > 0 else None
