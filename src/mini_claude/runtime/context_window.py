"""Fit a conversation into the context: all of it, or, for a session, without its oldest whole turns."""

from collections.abc import Sequence

from mini_claude.errors import ContextLengthExceeded
from mini_claude.models.base_model import ChatModel
from mini_claude.types import Message

DEFAULT_REPLY_TOKENS = 512  # room kept for the reply of a session that names no max_tokens


def fit(
    model: ChatModel, messages: Sequence[Message], max_tokens: int | None, *, drop_oldest: bool
) -> tuple[tuple[int, ...], int]:
    """Prompt token ids of the conversation and how many of its messages were dropped to make room.

    A turn is a user message with all that follows it up to the next one; leading system messages and the last turn
    always stay. Raises `ContextLengthExceeded` when what must stay is too long on its own (only checked here with
    `drop_oldest`; the engine checks every request).
    """
    token_ids = model.render(messages).token_ids
    reserve = max_tokens if max_tokens is not None else min(DEFAULT_REPLY_TOKENS, model.context_length // 2)
    room = model.context_length - reserve
    if not drop_oldest or len(token_ids) <= room:
        return token_ids, 0
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    starts = [i for i in range(first + 1, len(messages)) if messages[i].role == "user"]
    # Dropping more never makes the prompt longer, so the least that has to go is found by bisection.
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        token_ids = model.render([*messages[:first], *messages[starts[middle] :]]).token_ids
        if len(token_ids) <= room:
            high = middle
        else:
            low = middle + 1
    if low == len(starts):
        last = model.render([*messages[:first], *messages[starts[-1] if starts else first :]]).token_ids
        raise ContextLengthExceeded(
            f"The last message ({len(last)} tokens with the system prompt) and the reply ({reserve} tokens) do not fit "
            f"into the context of {model.context_length} tokens, even without the rest of the conversation. "
            "Shorten the message or lower max_tokens.",
            param="messages",
        )
    return model.render([*messages[:first], *messages[starts[low] :]]).token_ids, starts[low] - first
