"""A session as the chat shows it: which branch, which other ones there are, and its texts made safe to show."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mini_claude.data.records import Conversation, Turn

PREVIEW_CHARACTERS: Final = 40
_CODE: Final = re.compile(r"(^```.*?(?:^```|\Z)|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_IMAGE: Final = re.compile(r"!(?=\[)")


@dataclass(frozen=True, slots=True)
class Branch:
    """Another version of a turn on the way shown; `leaf_id` is the assistant turn to go on from."""

    label: str
    leaf_id: str


def safe_markdown(text: str) -> str:
    """Markdown whose HTML shows as text and whose images are links: nothing is fetched and nothing runs."""
    parts = _CODE.split(text)
    parts[::2] = [_IMAGE.sub("!\u200b", part.replace("&", "&amp;").replace("<", "&lt;")) for part in parts[::2]]
    return "".join(parts)


def original_text(markdown: str) -> str:
    """What `safe_markdown` was given, as far as somebody who edits its result left it so."""
    parts = _CODE.split(markdown)
    parts[::2] = [part.replace("!\u200b[", "![").replace("&lt;", "<").replace("&amp;", "&") for part in parts[::2]]
    return "".join(parts)


def shown_path(conversation: Conversation) -> tuple[Turn, ...]:
    """The turns from the root to the one that matters now: a reply that runs, a failed last one, else the head."""
    head = next((turn for turn in conversation.turns if turn.id == conversation.session.head_turn_id), None)
    leaf = head
    for turn in conversation.turns:
        newer = head is None or turn.created_at > head.created_at
        if turn.role == "assistant" and (turn.status == "running" or (newer and turn.status == "failed")):
            leaf = turn
    if leaf is None:  # no reply ever came to anything
        leaf = next((turn for turn in reversed(conversation.turns) if turn.role == "assistant"), None)
    return conversation.path_to(None if leaf is None else leaf.id)


def other_branches(conversation: Conversation, path: Sequence[Turn]) -> list[Branch]:
    """Every version of the turns on the path that is not on it, with where one goes on from there."""
    children: dict[str | None, list[Turn]] = {}
    for turn in conversation.turns:
        children.setdefault(turn.parent_id, []).append(turn)
    branches = []
    for number, turn in enumerate(path, 1):
        siblings = children[turn.parent_id]
        for version, sibling in enumerate(siblings, 1):
            leaf = _newest_answer(sibling, children)
            if sibling.id != turn.id and leaf is not None:
                who = "Question" if turn.role == "user" else "Answer"
                label = f"{who} {(number + 1) // 2}, version {version} of {len(siblings)}: {_preview(sibling.content)}"
                branches.append(Branch(label, leaf.id))
    return branches


def _newest_answer(turn: Turn, children: Mapping[str | None, Sequence[Turn]]) -> Turn | None:
    """The newest finished assistant turn at or below this one."""
    return max(
        (each for each in _below(turn, children) if each.role == "assistant" and each.status == "done"),
        key=lambda each: each.created_at,
        default=None,
    )


def _below(turn: Turn, children: Mapping[str | None, Sequence[Turn]]) -> Iterator[Turn]:
    open_turns = [turn]
    while open_turns:
        turn = open_turns.pop()
        yield turn
        open_turns.extend(children.get(turn.id, ()))


def _preview(content: str) -> str:
    line = " ".join(content.split())
    return line if len(line) <= PREVIEW_CHARACTERS else f"{line[:PREVIEW_CHARACTERS]}…"
