"""Turns as Gradio's chatbot takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gradio.components.chatbot import Message, MessageDict

from mini_claude.data.records import Feedback, Turn
from mini_claude.types import Role
from mini_claude.web.page.conversation import original_text, safe_markdown

CORRECTION: Final = "\n\n---\n*Your correction, kept for training:*\n\n"
ENDINGS: Final[Mapping[str | None, str]] = {
    "abort": "\n\n*(stopped)*",
    "length": "\n\n*(cut: the longest answer allowed was reached)*",
}
_RATINGS: Final[Mapping[str | None, str | None]] = {"up": "Like", "down": "Dislike", None: None}


@dataclass(frozen=True, slots=True)
class Corrections:
    """What the visitor said of replies, by reply id."""

    by_reply: Mapping[str, Feedback]

    def ratings(self, path: Sequence[Turn]) -> list[str | None]:
        """The chatbot's feedback values: one for each answer on the path."""
        given = (self.by_reply.get(turn.id) for turn in path if turn.role == "assistant")
        return [None if each is None else _RATINGS[each.rating] for each in given]

    def note(self, turn: Turn) -> str:
        """Markdown below an answer for which a better one was given."""
        feedback = self.by_reply.get(turn.id)
        if feedback is None or feedback.correction is None:
            return ""
        return f"{CORRECTION}{safe_markdown(feedback.correction)}"


def message_of(text: str, role: Role = "assistant") -> MessageDict:
    """One message with its text made safe."""
    return {"role": role, "content": safe_markdown(text)}


def edited_text(value: str) -> str:
    """What somebody who edits a message means by it: without what was added to show how the message ended."""
    text, _, _ = value.partition(CORRECTION)
    for ending in ENDINGS.values():
        text = text.removesuffix(ending)
    return original_text(text)


def messages_of(path: Sequence[Turn], corrections: Corrections) -> list[MessageDict | Message]:
    """One message a turn, so that a message's index is its turn's."""
    return [
        {"role": turn.role, "content": safe_markdown(turn.content) + _ending(turn) + corrections.note(turn)}
        for turn in path
    ]


def _ending(turn: Turn) -> str:
    if turn.status == "failed":
        reason = turn.error[1].message if turn.error is not None else "The answer was lost."
        return f"\n\n⚠ *{safe_markdown(reason)}*"
    if turn.finish_reason in ENDINGS:
        return ENDINGS[turn.finish_reason]
    return "" if turn.content or turn.role == "user" or turn.status == "running" else "*(empty answer)*"
