"""Token ids to text, one at a time, without ever cutting a character in two.

A token is a run of bytes, not of characters: an emoji is often three or four tokens. The incremental decoder
holds back the bytes of an unfinished character until the rest arrives.
"""

import codecs

from mini_claude.models.base_model import TextCodec


class Detokenizer:
    """The text of one reply as it grows. Control tokens add nothing."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes, possibly none."""
        return self._decoder.decode(self._codec.shown_bytes(token_id))

    def flush(self) -> str:
        """U+FFFD where the reply ended inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
