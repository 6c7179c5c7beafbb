"""DialoGPT (Zhang et al. 2019): GPT-2 trained on Reddit threads, where turns are just joined by EOS.

    Does money buy happiness?<eos>Depends how much you have.<eos>

There are no roles in the text; whose turn it is follows from the order, and nothing takes the place of a system
message.
"""

from collections.abc import Sequence
from pathlib import Path

from mini_claude.errors import InvalidRequest, ModelLoadError, UnsupportedRole
from mini_claude.models.base_model import ChatModel, RenderedPrompt
from mini_claude.models.causal_lm import context_length
from mini_claude.models.model_files import load_json_object
from mini_claude.models.text_codec import TokenizerCodec
from mini_claude.models.tokenizer_files import read_tokenizer
from mini_claude.types import Message


class DialoGPT(ChatModel):
    """Renders each turn as its text and EOS."""

    def __init__(self, name: str, folder: Path) -> None:
        """Raises `ModelLoadError` where tokenizer or configuration are unusable."""
        self.name = name
        tokenizer = read_tokenizer(folder)
        eos = tokenizer.token_id("eos_token")
        if eos is None:
            raise ModelLoadError(f"The tokenizer of {name} names no EOS token, which DialoGPT needs between turns.")
        self._eos = eos
        self._codec = TokenizerCodec(tokenizer.backend)
        self._context_length = context_length(load_json_object(folder / "config.json"))

    @property
    def codec(self) -> TokenizerCodec:
        """GPT-2's tokenizer."""
        return self._codec

    @property
    def context_length(self) -> int:
        """1024 for the published sizes."""
        return self._context_length

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """EOS ends every turn."""
        return frozenset({self._eos})

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """None: turns end by token."""
        return ()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> RenderedPrompt:
        """Turns joined by EOS. The answer begins right after one, so a generation prompt adds nothing."""
        del add_generation_prompt
        if not messages:
            raise InvalidRequest("messages is empty; send at least one message.", param="messages")
        token_ids: list[int] = []
        mask: list[bool] = []
        for message in messages:
            if message.role == "system":
                raise UnsupportedRole(
                    "DialoGPT has no system role; leave the system message out or choose another model.",
                    param="messages",
                )
            turn = [*self._codec.encode(message.content), self._eos]
            token_ids += turn
            mask += [message.role == "assistant"] * len(turn)
        return RenderedPrompt(tuple(token_ids), tuple(mask))

    def render_text(self, text: str) -> RenderedPrompt:
        """The text and EOS."""
        token_ids = (*self._codec.encode(text), self._eos)
        return RenderedPrompt(token_ids, (True,) * len(token_ids))
