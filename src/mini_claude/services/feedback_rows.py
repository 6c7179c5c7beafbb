"""Rows of training data out of what somebody thinks of answers. Pure functions.

An answer that was stopped, or cut at its longest, is no example: whoever learned from it would learn to end there.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mini_claude.data.records import Conversation, Feedback, Preference, Turn
from mini_claude.services.preference_rules import preference_row
from mini_claude.services.session_turn import context_of_reply
from mini_claude.types import Message

Row = dict[str, Any]


@dataclass(slots=True)
class Harvest:
    """Rows, and how many answers were left out of them because they had not come to their end."""

    rows: list[Row] = field(default_factory=list)
    num_left_out: int = 0


def rated_rows(conversation: Conversation, feedback: Mapping[str, Feedback]) -> Harvest:
    """A row for each reply that was rated up or corrected: the way to it, and it or what it should have been.

    What was said before is read and not learned.
    """
    harvest = Harvest()
    for context, reply, given in _judged(conversation, feedback):
        answer = given.correction or (reply.content if given.rating == "up" else "")
        if not answer.strip():
            continue
        if given.correction is None and not _whole(reply):
            harvest.num_left_out += 1
            continue
        said = [_message(message) | _unlearned(message) for message in context]
        harvest.rows.append({"messages": [*said, {"role": "assistant", "content": answer}]})
    return harvest


def correction_rows(conversation: Conversation, feedback: Mapping[str, Feedback]) -> Harvest:
    """A preference row for each corrected reply: the correction is better than what was said.

    None where the reply has a thumb up all the same: then both are good.
    """
    harvest = Harvest()
    for context, reply, given in _judged(conversation, feedback):
        said, correction = reply.content, given.correction
        if correction is None or given.rating == "up" or not said.strip() or said == correction:
            continue
        if _whole(reply):
            harvest.rows.append(preference_row(context, correction, said))
        else:
            harvest.num_left_out += 1
    return harvest


def comparison_rows(preferences: Iterable[Preference]) -> Harvest:
    """The pairs as preference rows."""
    harvest = Harvest()
    for pair in preferences:
        if pair.chosen.cut or pair.rejected.cut:
            harvest.num_left_out += 1
        else:
            harvest.rows.append(preference_row(pair.messages, pair.chosen.text, pair.rejected.text))
    return harvest


def _judged(
    conversation: Conversation, feedback: Mapping[str, Feedback]
) -> Iterator[tuple[tuple[Message, ...], Turn, Feedback]]:
    """Each reply with feedback, after what it was an answer to."""
    for turn in conversation.turns:
        if (given := feedback.get(turn.id)) is not None:
            path = conversation.path_to(turn.id)
            yield context_of_reply(conversation.session.system, path), turn, given


def _whole(reply: Turn) -> bool:
    return reply.finish_reason == "stop"


def _message(message: Message) -> Row:
    return {"role": message.role, "content": message.content}


def _unlearned(message: Message) -> Row:
    return {"weight": 0} if message.role == "assistant" else {}
