"""From an example to token ids and to what the loss sees of them; the tokens are those that a chat would have.

<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n
                                                    ~~~~~~~~~~~~~~~~  supervised: the answer and its end
"""

from collections.abc import Sequence

from mini_claude.errors import InvalidRequest
from mini_claude.models.base_model import ChatModel, RenderedPrompt
from mini_claude.training.examples import (
    Conversation,
    Example,
    PlainText,
    Preference,
    RowProblem,
    TokenizedExample,
    TokenizedPreference,
)
from mini_claude.types import Message


def tokenize(
    example: Example, model: ChatModel, max_length: int
) -> TokenizedExample | TokenizedPreference | RowProblem:
    """The example's tokens, at most `max_length` of them (and never more than the model's context holds).

    A `RowProblem` says why it cannot be used: the model's template refuses it, or nothing supervised is left of it.
    """
    limit = min(max_length, model.context_length)
    try:
        if isinstance(example, Preference):
            return _preference(example, model, limit)
        if isinstance(example, PlainText):
            rendered = model.render_text(example.text)
            supervised = rendered.assistant_mask
        else:
            rendered = model.render(example.messages, add_generation_prompt=False)
            supervised = _learned(rendered.assistant_mask, example)
    except InvalidRequest as error:
        return RowProblem(example.row, None, error.message)
    return _cut(rendered, supervised, example.row, limit, _lack(example))


def _learned(mask: tuple[bool, ...], example: Conversation) -> tuple[bool, ...]:
    """The mask without the answers that are there to be read only: each answer is an unbroken stretch of it."""
    if not example.unlearned:
        return mask
    answers = [place for place, message in enumerate(example.messages) if message.role == "assistant"]
    learned = []
    number = -1
    for i, supervised in enumerate(mask):
        number += supervised and not (i and mask[i - 1])
        learned.append(supervised and answers[number] not in example.unlearned)
    return tuple(learned)


def _preference(example: Preference, model: ChatModel, limit: int) -> TokenizedPreference | RowProblem:
    pair = []
    for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
        rendered = model.render((*example.prompt, Message("assistant", answer)), add_generation_prompt=False)
        supervised = _last_run(rendered.assistant_mask)
        tokenized = _cut(rendered, supervised, example.row, limit, f"nothing of the {name} answer")
        if isinstance(tokenized, RowProblem):
            return tokenized
        pair.append(tokenized)
    return TokenizedPreference(*pair)


def _cut(
    rendered: RenderedPrompt, supervised: Sequence[bool], row: int, limit: int, lack: str
) -> TokenizedExample | RowProblem:
    """The first `limit` tokens. The very first is no target: nothing comes before it that could predict it."""
    kept = (False, *supervised[1:limit])
    if not any(kept):
        reason = f"The model would learn {lack}"
        if any(supervised[limit:]):
            reason += f": its {len(rendered.token_ids)} tokens are cut to max_length {limit} before an answer begins"
        return RowProblem(row, None, reason + ".")
    truncated = max(0, len(rendered.token_ids) - limit)
    return TokenizedExample(rendered.token_ids[:limit], kept, row, truncated)


def _last_run(mask: Sequence[bool]) -> tuple[bool, ...]:
    """The mask with only its last unbroken stretch left: in a preference, the answers inside the prompt are given."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return (False,) * start + (True,) * (end - start) + (False,) * (len(mask) - end)


def _lack(example: Conversation | PlainText) -> str:
    if isinstance(example, PlainText):
        return "nothing from a text this short"
    if all(message.role != "assistant" for message in example.messages):
        return "nothing: no message is the assistant's"
    return "no token of the assistant's"
