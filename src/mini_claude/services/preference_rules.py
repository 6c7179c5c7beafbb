"""What two answers must be like so that a preference between them can be learned from later."""

import re
from collections.abc import Sequence
from typing import Final

from mini_claude.data.records import Answer
from mini_claude.errors import InvalidRequest
from mini_claude.services.catalog import DEFAULT_ALIAS
from mini_claude.services.session_turn import require_unicode
from mini_claude.training.row_formats import UnusableRow, example_of
from mini_claude.types import Message

MAX_TEXT: Final = 65_536  # characters of an answer, and of a correction
MAX_MESSAGES: Final = 256
MAX_CONTEXT: Final = 262_144  # characters of all messages together
_NAME: Final = r"[a-z0-9_-][a-z0-9._-]{0,63}"
_REFERENCE: Final = re.compile(rf"{_NAME}(:{_NAME}@[1-9][0-9]{{0,8}})?")


def require_text(text: str, param: str) -> None:
    """Raise `InvalidRequest` for what cannot be an answer to learn: no text, too much, or what no file can hold."""
    require_unicode(text, param)
    if not text.strip():
        raise InvalidRequest(f"{param} is empty; write something.", param=param)
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"{param} has more than {MAX_TEXT} characters; shorten it.", param=param)
    if "\0" in text:
        raise InvalidRequest(f"{param} holds a NUL character; take it out.", param=param)


def check_preference(messages: Sequence[Message], chosen: Answer, rejected: Answer) -> None:
    """Raise `InvalidRequest` for what training would refuse, or what leaves open which models were compared."""
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        require_text(answer.text, f"{name}.text")
        if not _REFERENCE.fullmatch(answer.model) or answer.model == DEFAULT_ALIAS:
            raise InvalidRequest(
                f"{name}.model names no model of its own: send what the reply called it, model or "
                "model:adapter@version.",
                param=f"{name}.model",
            )
    if chosen.text == rejected.text:
        raise InvalidRequest("rejected.text is the same as chosen.text: neither is better.", param="rejected.text")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages has more than {MAX_MESSAGES}: send the last ones.", param="messages")
    if sum(len(message.content) for message in messages) > MAX_CONTEXT:
        raise InvalidRequest(f"messages has more than {MAX_CONTEXT} characters: send the last ones.", param="messages")
    try:
        example_of(preference_row(messages, chosen.text, rejected.text), "preference", 1)
    except UnusableRow as error:
        raise InvalidRequest(f"messages cannot be learned from: {error}.", param="messages") from error


def preference_row(messages: Sequence[Message], chosen: str, rejected: str) -> dict[str, object]:
    """A row as DPO takes it (training/row_formats.py, "preference")."""
    prompt = [{"role": message.role, "content": message.content} for message in messages]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
