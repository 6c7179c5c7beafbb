"""What a chat model is, seen from outside: messages in, token ids out, and where a reply ends.

The renderer here is the only way from messages to token ids. Chat calls it to make a prompt, training calls
it to make an example, so the two cannot differ.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from mini_claude.types import Message


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """Token ids of a conversation and, aligned with them, which ones the assistant wrote.

    `assistant_mask[i]` is True where token i belongs to an assistant's answer, its end-of-turn token
    included; the role header before it is not part of the answer. Both have the same length. `template_seconds` is
    how long it took to turn the messages into text.
    """

    token_ids: tuple[int, ...]
    assistant_mask: tuple[bool, ...]
    template_seconds: float = field(default=0.0, compare=False)


class TextCodec(ABC):
    """Token ids to bytes and back: what detokenizing needs from a tokenizer."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids, control tokens included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. Never yields a control token, whatever the text spells, and adds none."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids with control tokens left out; incomplete UTF-8 shows as U+FFFD."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that this token adds; a control token gives its name in UTF-8."""

    def shown_bytes(self, token_id: int) -> bytes:
        """What this token adds to a text that somebody reads: `token_bytes`, or nothing for a control token."""
        token_bytes = self.token_bytes(token_id)
        # Only decode() knows which tokens are control tokens. Whitespace is excluded because some tokenizers
        # strip it there; the name of a control token is never blank.
        is_control = bool(token_bytes.strip()) and not self.decode((token_id,))
        return b"" if is_control else token_bytes


class ChatModel(ABC):
    """A model that can hold a conversation: its renderer, its tokenizer and its limits, not its weights."""

    name: str

    @property
    @abstractmethod
    def codec(self) -> TextCodec:
        """The tokenizer, as far as engines may see it."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """The most tokens that prompt and completion may have together."""

    @property
    @abstractmethod
    def stop_token_ids(self) -> frozenset[int]:
        """Any of these ends the reply and is not part of its text."""

    @property
    @abstractmethod
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a reply where no token does (the fallback template); else empty."""

    @abstractmethod
    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> RenderedPrompt:
        """Token ids of the conversation.

        With `add_generation_prompt` the ids end where the assistant's answer begins. Content is tokenised
        apart from the template's scaffolding, so it never becomes a control token.

        Raises `UnsupportedRole` for a role that this model does not have, `InvalidRequest` for a conversation
        that its template refuses.
        """

    @abstractmethod
    def render_text(self, text: str) -> RenderedPrompt:
        """Token ids of a text without turns, for training: as in pre-training it ends with EOS, where there is one.

        The mask is on every token but a BOS.
        """
