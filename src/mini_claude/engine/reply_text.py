"""The text side of one reply: detokenizer, then stop strings. Both engines use it."""

from mini_claude.engine.detokenizer import Detokenizer
from mini_claude.engine.stop_strings import StopStrings
from mini_claude.models.base_model import TextCodec


class ReplyText:
    """Turns the tokens of one reply into text that may be shown."""

    def __init__(self, codec: TextCodec, stop: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(codec)
        self._stop_strings = StopStrings(stop)

    def push(self, token_id: int) -> tuple[str, bool]:
        """Text that this token adds, and whether a stop string ended the reply."""
        return self._stop_strings.push(self._detokenizer.push(token_id))

    def flush(self) -> tuple[str, bool]:
        """The rest, for a reply that ends by a stop id, its length or an abort; True as for `push`."""
        text, stopped = self._stop_strings.push(self._detokenizer.flush())
        return (text, True) if stopped else (text + self._stop_strings.flush(), False)
