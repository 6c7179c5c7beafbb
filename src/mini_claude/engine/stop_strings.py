"""Ends a reply at the first stop string, and never shows any part of one.

A stop string may be spread over several tokens, so text that could still become one is held back until it is
clear that it does not.
"""


class StopStrings:
    """Watches the text of one reply for `stop`, any of which ends it."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(string for string in stop if string)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was found (then push no more)."""
        if not self._stop:
            return text, False
        text = self._held + text
        starts = [start for string in self._stop if (start := text.find(string)) >= 0]
        if starts:
            self._held = ""
            return text[: min(starts)], True
        num_held = max((self._overlap(text, string) for string in self._stop), default=0)
        safe = len(text) - num_held
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """What was held back, for a reply that ends for another reason."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, string: str) -> int:
        """Length of the longest end of `text` with which `string` begins."""
        longest = min(len(text), len(string) - 1)
        return next((size for size in range(longest, 0, -1) if text.endswith(string[:size])), 0)
