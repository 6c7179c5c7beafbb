"""Any Hugging Face causal language model as a chat partner: its chat template, its tokenizer, its limits.

Chat prompts and training examples come from the same `render`. The template's text is cut at its own control tokens
and where an answer begins; every stretch in between is tokenised as plain text. So what a user types cannot become
a control token, a token the template writes (a BOS, say) is there exactly once, and a prompt is always a prefix of
the training example that continues it.
"""

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import InvalidRequest
from mini_claude.models.base_model import ChatModel, RenderedPrompt
from mini_claude.models.chat_template import ChatTemplate
from mini_claude.models.model_files import load_json_object
from mini_claude.models.provenance import Provenance, Run, tokens_in
from mini_claude.models.text_codec import Preceding, TokenizerCodec
from mini_claude.models.tokenizer_files import TokenizerSummary, read_tokenizer
from mini_claude.types import Message

# For models without a template: a dialogue as plain text, in which an answer ends with EOS.
FALLBACK_TEMPLATE: Final = """\
{%- if begins_with_bos %}{{ bos_token }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content | trim }}{{ '\\n\\n' }}
{%- elif message.role == 'user' %}{{ 'User: ' + message.content | trim + '\\n' }}
{%- else %}{{ 'Assistant: ' + message.content | trim }}{{ eos_token }}{{ '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
FALLBACK_STOP_STRINGS: Final = ("\nUser:",)
_DEFAULT_CONTEXT_LENGTH: Final = 2048


class CausalLM(ChatModel):
    """Renderer, tokenizer and limits of a causal LM, without its weights."""

    def __init__(
        self, name: str, tokenizer: TokenizerSummary, *, context_length: int, eos_token_ids: Iterable[int] = ()
    ) -> None:
        """`eos_token_ids` come from the model's configuration; the tokenizer's and the template's are added."""
        self.name = name
        self._context_length = context_length
        self._codec = TokenizerCodec(tokenizer.backend)
        source = tokenizer.chat_template
        self._stop_strings = () if source else FALLBACK_STOP_STRINGS
        variables: dict[str, Any] = dict(tokenizer.special_tokens)
        bos, eos = tokenizer.token_id("bos_token"), tokenizer.token_id("eos_token")
        self._bos = [bos] if bos is not None and tokenizer.begins_with_bos else []
        self._eos = [] if eos is None else [eos]
        if not source:
            variables["begins_with_bos"] = tokenizer.begins_with_bos
        template = ChatTemplate(source or FALLBACK_TEMPLATE, variables)
        self._provenance = Provenance(template, self._codec.control_tokens, self._codec.special_tokens)
        stop = {*eos_token_ids, eos, self._end_of_turn()}
        self._stop_token_ids = frozenset(token_id for token_id in stop if token_id is not None)

    @classmethod
    def from_folder(cls, name: str, folder: Path) -> "CausalLM":
        """Read tokenizer and configuration of a model folder. Raises `ModelLoadError` where one is unusable."""
        config = load_json_object(folder / "config.json")
        text_config = config.get("text_config", config)
        generation = folder / "generation_config.json"
        eos = [text_config.get("eos_token_id"), config.get("eos_token_id")]
        if generation.exists():
            eos.append(load_json_object(generation).get("eos_token_id"))
        return cls(
            name,
            read_tokenizer(folder),
            context_length=context_length(text_config),
            eos_token_ids=[i for ids in eos for i in (ids if isinstance(ids, list) else [ids]) if i is not None],
        )

    @property
    def codec(self) -> TokenizerCodec:
        """The tokenizer without its control tokens."""
        return self._codec

    @property
    def context_length(self) -> int:
        """As the configuration says."""
        return self._context_length

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """EOS of configuration and tokenizer, and the token that ends a turn in the template."""
        return self._stop_token_ids

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Where the fallback template would begin the user's next turn."""
        return self._stop_strings

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> RenderedPrompt:
        """Token ids and mask by the model's chat template, or the fallback where it has none."""
        if not messages:
            raise InvalidRequest("messages is empty; send at least one message.", param="messages")
        tokens = _TokenStream(self._codec)
        answered = False  # an answer's text has ended and its end-of-turn token has not come yet
        started = time.perf_counter()
        runs = tuple(self._provenance.runs(messages, add_generation_prompt=add_generation_prompt))
        template_seconds = time.perf_counter() - started
        for run in runs:
            if not run.scaffold:
                tokens.text(run.text, run.answer)
                answered = run.answer
                continue
            for control, text in self._cut(run.text):
                if control is None:
                    tokens.text(text, run.answer)
                    continue
                ends_turn = answered and control in self._stop_token_ids
                tokens.control(control, run.answer or ends_turn)
                answered = answered and run.answer and not ends_turn
        return tokens.finish(template_seconds)

    def render_text(self, text: str) -> RenderedPrompt:
        """The text between BOS, if the tokenizer puts one before a text, and EOS."""
        token_ids = self._codec.encode_after("control" if self._bos else "nothing", text)
        mask = [False] * len(self._bos) + [True] * (len(token_ids) + len(self._eos))
        return RenderedPrompt((*self._bos, *token_ids, *self._eos), tuple(mask))

    def _cut(self, scaffold: str) -> list[tuple[int | None, str]]:
        """Cut the template's text at its control tokens: (id, name) for these and (None, text) for the rest."""
        present = tokens_in(scaffold, self._codec.control_tokens)
        if not present:
            return [(None, scaffold)]
        pattern = "|".join(map(re.escape, sorted(present, key=len, reverse=True)))
        texts = re.split(pattern, scaffold)
        names = re.findall(pattern, scaffold)
        parts: list[tuple[int | None, str]] = []
        for i, name in enumerate(names):
            control = self._codec.control_tokens[name]
            if control in self._codec.strips_left:
                texts[i] = texts[i].rstrip()
            if control in self._codec.strips_right:
                texts[i + 1] = texts[i + 1].lstrip()
            parts += [(None, texts[i]), (control, name)]
        return [*parts, (None, texts[-1])]

    def _end_of_turn(self) -> int | None:
        """The control token that the template puts after an answer with which a conversation ends."""
        exchange = (Message("user", "x"), Message("assistant", "y"))
        try:
            runs = self._provenance.runs(exchange, add_generation_prompt=False)
        except InvalidRequest:
            return None
        after = runs[-1] if len(runs) > 1 and runs[-2].answer else Run("", scaffold=True, answer=False)
        return next((control for control, _ in self._cut(after.text) if control is not None), None)


class _TokenStream:
    """Collects ids and mask. Neighbouring text of one kind is tokenised together, as it was written together."""

    def __init__(self, codec: TokenizerCodec) -> None:
        self._codec = codec
        self._token_ids: list[int] = []
        self._mask: list[bool] = []
        self._preceding: Preceding = "nothing"
        self._pending = ""
        self._pending_masked = False
        self._known: dict[tuple[Preceding, str], list[int]] = {}  # a template repeats itself

    def text(self, text: str, masked: bool) -> None:
        if masked != self._pending_masked:
            self._flush()
            self._pending_masked = masked
        self._pending += text

    def control(self, token_id: int, masked: bool) -> None:
        self._flush()
        self._append([token_id], masked, "control")

    def finish(self, template_seconds: float) -> RenderedPrompt:
        self._flush()
        return RenderedPrompt(tuple(self._token_ids), tuple(self._mask), template_seconds)

    def _flush(self) -> None:
        if self._pending:
            key = self._preceding, self._pending
            if key not in self._known:
                self._known[key] = self._codec.encode_after(*key)
            self._append(self._known[key], self._pending_masked, "text")
            self._pending = ""

    def _append(self, token_ids: list[int], masked: bool, kind: Preceding) -> None:
        self._token_ids += token_ids
        self._mask += [masked] * len(token_ids)
        self._preceding = kind


def context_length(config: dict[str, Any]) -> int:
    """The longest sequence that a text model's configuration allows, whatever the architecture calls it."""
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return _DEFAULT_CONTEXT_LENGTH
