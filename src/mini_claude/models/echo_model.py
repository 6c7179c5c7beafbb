"""The smallest chat model there is: every byte is a token, ids past 255 are control tokens.

    <|user|> H i <|end|> <|assistant|>        rendered: 258 72 105 256 259

It has a renderer and a tokenizer like any other model but no weights; the echo engine answers for it. With it
the whole product runs in milliseconds and without torch, which is what most tests do.
"""

from collections.abc import Sequence
from typing import Final

from mini_claude.models.base_model import ChatModel, RenderedPrompt, TextCodec
from mini_claude.types import Message, Role

END_OF_TURN: Final = 256
ROLE_MARKERS: Final[dict[Role, int]] = {"system": 257, "user": 258, "assistant": 259}
CONTROL_TOKENS: Final = {END_OF_TURN: "<|end|>"} | {token: f"<|{role}|>" for role, token in ROLE_MARKERS.items()}


class ByteCodec(TextCodec):
    """Ids 0 to 255 are the bytes of UTF-8; those above are control tokens."""

    @property
    def vocab_size(self) -> int:
        """256 bytes and the control tokens."""
        return 256 + len(CONTROL_TOKENS)

    def encode(self, text: str) -> list[int]:
        """The bytes of the text; a lone surrogate counts as U+FFFD because UTF-8 has no bytes for it."""
        return list(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the byte tokens."""
        return bytes(token for token in token_ids if token < 256).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The byte itself, or the control token's name."""
        return bytes([token_id]) if token_id < 256 else CONTROL_TOKENS[token_id].encode()


class EchoModel(ChatModel):
    """Renders each message as its role marker, its bytes and an end-of-turn token."""

    def __init__(self, name: str = "echo", context_length: int = 2048) -> None:
        self.name = name
        self._context_length = context_length
        self._codec = ByteCodec()

    @property
    def codec(self) -> ByteCodec:
        """Bytes as tokens."""
        return self._codec

    @property
    def context_length(self) -> int:
        """As given."""
        return self._context_length

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The one end-of-turn token."""
        return frozenset({END_OF_TURN})

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """None: turns end by token."""
        return ()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> RenderedPrompt:
        """Marker, bytes, end of turn; the mask is on an answer's bytes and its end of turn."""
        token_ids: list[int] = []
        mask: list[bool] = []
        for message in messages:
            content = [*self._codec.encode(message.content), END_OF_TURN]
            token_ids += [ROLE_MARKERS[message.role], *content]
            mask += [False] + [message.role == "assistant"] * len(content)
        if add_generation_prompt:
            token_ids.append(ROLE_MARKERS["assistant"])
            mask.append(False)
        return RenderedPrompt(tuple(token_ids), tuple(mask))

    def render_text(self, text: str) -> RenderedPrompt:
        """The bytes of the text and an end of turn."""
        token_ids = (*self._codec.encode(text), END_OF_TURN)
        return RenderedPrompt(token_ids, (True,) * len(token_ids))
