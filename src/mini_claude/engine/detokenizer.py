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
        token_bytes = self._codec.token_bytes(token_id)
        # Only decode() knows which tokens are control tokens. Whitespace is excluded because some tokenizers
        # strip it there; the name of a control token is never blank.
        if token_bytes.strip() and not self._codec.decode((token_id,)):
            return ""
        return self._decoder.decode(token_bytes)

    def flush(self) -> str:
        """U+FFFD where the reply ended inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
