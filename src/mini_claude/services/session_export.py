"""A conversation as a file: all of it as JSON, or the current branch as Markdown to read."""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from mini_claude.data.records import Conversation, Feedback, Turn
from mini_claude.services.chat import ChatService
from mini_claude.services.feedback import FeedbackService
from mini_claude.services.identity import Caller

ExportKind = Literal["json", "markdown"]
SUFFIXES: Final[dict[ExportKind, str]] = {"json": ".json", "markdown": ".md"}
MEDIA_TYPES: Final[dict[ExportKind, str]] = {
    "json": "application/json",
    "markdown": "text/markdown; charset=utf-8",
}
FORMAT_VERSION: Final = 1
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9]+")
_MARKDOWN: Final = re.compile(r"([\\`*_\[\]<>#])")
_ESCAPED: Final = r"\\\1"
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


@dataclass(frozen=True, slots=True)
class SessionFile:
    """A text with a name that any file system takes."""

    file_name: str
    text: str


class SessionExport:
    """Writes what the owner of a session may take along."""

    def __init__(self, chat: ChatService, feedback: FeedbackService) -> None:
        self._chat = chat
        self._feedback = feedback

    async def export(self, caller: Caller, session_id: str, kind: ExportKind) -> SessionFile:
        """The session with all its branches as JSON, or its current one as Markdown. Raises `NotFound`."""
        conversation = await self._chat.get(caller, session_id)
        feedback = await self._feedback.of_session(caller, session_id)
        stem = _NOT_IN_A_NAME.sub("-", conversation.session.title).strip("-").lower()[:40] or "conversation"
        text = _json(conversation, dict(feedback)) if kind == "json" else _markdown(conversation)
        return SessionFile(f"{stem}{SUFFIXES[kind]}", text)


def _json(conversation: Conversation, feedback: dict[str, Feedback]) -> str:
    session = asdict(conversation.session)
    del session["owner"]
    turns = [_turn(turn, feedback.get(turn.id)) for turn in conversation.turns]
    document = {"format": "mini-claude-session", "version": FORMAT_VERSION, "session": session, "turns": turns}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _turn(turn: Turn, feedback: Feedback | None) -> dict[str, Any]:
    document = asdict(turn)
    for name in ("session_id", "delta_ends", "error"):
        del document[name]
    document["error"] = turn.error[1].message if turn.error is not None else None
    if feedback is not None:
        document["feedback"] = {"rating": feedback.rating, "correction": feedback.correction}
    return document


def _markdown(conversation: Conversation) -> str:
    session = conversation.session
    parts = [
        f"# {_MARKDOWN.sub(_ESCAPED, session.title)}",
        f"*{_date(session.created_at)}, {session.model or 'default model'}*",
    ]
    if session.system:
        parts += ["## System", closed(session.system)]
    for turn in conversation.path_to(session.head_turn_id):
        if turn.role == "user":
            parts += ["## You", closed(turn.content)]
        else:
            parts += [f"## {turn.model or 'Assistant'}", closed(turn.content) or "*(no answer)*"]
    return "\n\n".join(parts) + "\n"


def closed(text: str) -> str:
    """The text with its last code block closed: that of a reply that was cut would swallow all that follows."""
    fence: str | None = None
    for line in text.splitlines():
        if (match := _FENCE.match(line)) is None:
            continue
        marks, rest = match[1], match[2].strip()
        if fence is None:
            fence = marks
        elif marks.startswith(fence) and not rest:
            fence = None
    return text if fence is None else f"{text}\n{fence}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
