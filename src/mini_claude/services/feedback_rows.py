"""Rows of training data out of what somebody thinks of answers. Pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mini_claude.data.records import Conversation, Feedback, Preference, Turn
from mini_claude.types import Message

Row = dict[str, Any]


def rated_rows(conversation: Conversation, feedback: Mapping[str, Feedback]) -> Iterator[Row]:
    """A row for each reply that was rated up or corrected: the way to it, and it or what it should have been.

    What was said before is read and not learned.
    """
    for path, given in _judged(conversation, feedback):
        answer = given.correction or (path[-1].content if given.rating == "up" else "")
        if answer.strip():
            context = [_message(message) | _unlearned(message) for message in _context(conversation, path)]
            yield {"messages": [*context, {"role": "assistant", "content": answer}]}


def correction_rows(conversation: Conversation, feedback: Mapping[str, Feedback]) -> Iterator[Row]:
    """A preference row for each corrected reply: the correction is better than what was said."""
    for path, given in _judged(conversation, feedback):
        said = path[-1].content
        if given.correction is not None and said.strip() and said != given.correction:
            context = [_message(message) for message in _context(conversation, path)]
            yield {"prompt": context, "chosen": given.correction, "rejected": said}


def preference_row(preference: Preference) -> Row:
    """The pair as a preference row."""
    prompt = [_message(message) for message in preference.messages]
    return {"prompt": prompt, "chosen": preference.chosen.text, "rejected": preference.rejected.text}


def _judged(
    conversation: Conversation, feedback: Mapping[str, Feedback]
) -> Iterator[tuple[tuple[Turn, ...], Feedback]]:
    by_id = {turn.id: turn for turn in conversation.turns}
    for turn in conversation.turns:
        if (given := feedback.get(turn.id)) is not None:
            path: list[Turn] = []
            step: Turn | None = turn
            while step is not None:
                path.append(step)
                step = by_id.get(step.parent_id or "")
            yield tuple(reversed(path)), given


def _context(conversation: Conversation, path: Sequence[Turn]) -> list[Message]:
    """What the reply at the path's end was an answer to."""
    dropped = set(path[-1].dropped_turn_ids)
    spoken = [Message(turn.role, turn.content) for turn in path[:-1] if turn.id not in dropped]
    system = conversation.session.system
    return [Message("system", system), *spoken] if system else spoken


def _message(message: Message) -> Row:
    return {"role": message.role, "content": message.content}


def _unlearned(message: Message) -> Row:
    return {"weight": 0} if message.role == "assistant" else {}
