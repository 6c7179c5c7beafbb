"""What a client says in a session, and the rules by which it becomes turns and messages."""

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mini_claude.data.records import ChatSession, Turn
from mini_claude.errors import Conflict, InvalidRequest
from mini_claude.types import Message, SamplingParams

TITLE_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True)
class SessionTurn:
    """A request for a reply in a session.

    `content` None: answer the user turn `parent_id` again. `content` given: a new user turn under `parent_id` (None:
    the head; "": the root, which is how the first turn is edited).
    """

    session_id: str | None  # None: a new session
    content: str | None
    params: SamplingParams
    model: str | None = None  # None: the session's model, else the default; a given one becomes the session's
    system: str | None = None  # becomes the session's system prompt when given; "" takes it away
    parent_id: str | None = None
    resumable: bool = False  # goes on, and can be listened to again, when its listener goes away
    content_param: str = "messages"  # the field of the client's request that held the content, for errors


@dataclass(frozen=True, slots=True)
class Draft:
    """A request before the engine has accepted it. `path` runs from the root to the user turn, which comes last."""

    session: ChatSession
    path: tuple[Turn, ...]
    is_new_session: bool
    is_new_user_turn: bool

    @property
    def user_turn(self) -> Turn:
        """The turn to be answered."""
        return self.path[-1]

    def messages(self, system: str | None) -> tuple[Message, ...]:
        """The context of the reply: the system prompt, if there is one, and the path."""
        return context_of(system, self.path)


def context_of(system: str | None, turns: Iterable[Turn]) -> tuple[Message, ...]:
    """The system prompt, if there is one, and what was said."""
    spoken = tuple(Message(turn.role, turn.content) for turn in turns)
    return (Message("system", system), *spoken) if system else spoken


def context_of_reply(system: str | None, path: Sequence[Turn]) -> tuple[Message, ...]:
    """What the reply at the path's end was an answer to: without what had not fitted into its context."""
    dropped = set(path[-1].dropped_turn_ids)
    return context_of(system, (turn for turn in path[:-1] if turn.id not in dropped))


def check_turn(turn: SessionTurn) -> None:
    """Raise `InvalidRequest` for what cannot be answered whatever the session holds."""
    if turn.content is None:
        if turn.session_id is None or not turn.parent_id:
            raise InvalidRequest(
                "To answer a turn again, give session_id and the user turn's id as parent_id.", param="parent_id"
            )
    elif not turn.content.strip():
        raise InvalidRequest("The message is empty; write something.", param=turn.content_param)
    if turn.session_id is None and turn.parent_id:
        raise InvalidRequest("A new session has no turn to stand under; leave parent_id out.", param="parent_id")
    require_unicode("".join(turn.params.stop), "stop")
    for param, text in ((turn.content_param, turn.content), ("system", turn.system)):
        require_storable(text or "", param)


def require_unicode(text: str, param: str) -> None:
    """Raise `InvalidRequest` for half of a surrogate pair: JSON can spell it, but nothing can store or send it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{param} holds half of a surrogate pair; send valid Unicode.", param=param) from error


def require_storable(text: str, param: str) -> None:
    """Raise `InvalidRequest` for what one of the databases cannot store: PostgreSQL knows no U+0000."""
    require_unicode(text, param)
    if "\0" in text:
        raise InvalidRequest(f"{param} holds the character U+0000, which cannot be stored; leave it out.", param=param)


def new_session(owner: str, turn: SessionTurn) -> ChatSession:
    """The session that begins with this turn; its model and system prompt are set when the reply is accepted."""
    now = time.time()
    title = title_of(turn.content or "")
    return ChatSession(uuid.uuid4().hex, owner, title, None, None, None, now, now)


def draft(session: ChatSession, path: Sequence[Turn], turn: SessionTurn, *, is_new_session: bool) -> Draft:
    """Put the request under its parent, the last turn of `path`. Raises `InvalidRequest` and `Conflict`."""
    if turn.content is None:
        if path[-1].role != "user":
            raise InvalidRequest("Only a user turn can be answered again; give its id as parent_id.", param="parent_id")
        return Draft(session, tuple(path), is_new_session, is_new_user_turn=False)
    if path:
        require_continuable(path[-1], "parent_id")
    parent_id = path[-1].id if path else None
    user_turn = Turn(uuid.uuid4().hex, session.id, parent_id, "user", turn.content, "done", time.time())
    return Draft(session, (*path, user_turn), is_new_session, is_new_user_turn=True)


def require_continuable(turn: Turn, param: str) -> None:
    """Raise unless the conversation can go on from this turn: a reply that has ended and was not lost."""
    if turn.role != "assistant":
        raise InvalidRequest("This is a user turn; give the id of an assistant turn.", param=param)
    if turn.status == "running":
        raise Conflict("This reply is still being written; wait for its end or stop it.", param=param)
    if turn.status == "failed" and not turn.content:
        raise Conflict("This reply failed before its first word; answer its user turn again.", param=param)


def title_of(content: str) -> str:
    """The first words as one line of at most 60 characters."""
    return " ".join(content.split())[:TITLE_CHARACTERS].rstrip()
