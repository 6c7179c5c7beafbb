"""Stored conversations as the native API shows them."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import ChatSession, Conversation, Turn
from mini_claude.web.schemas.chat import UsagePublic
from mini_claude.web.schemas.sampling import Id, WireModel


class SessionPublic(BaseModel):
    """A session without its turns. Times are Unix seconds."""

    id: str
    title: str
    model: str | None
    system: str | None
    head_turn_id: str | None
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, session: ChatSession) -> Self:
        """From the record, without its owner."""
        return cls(
            id=session.id,
            title=session.title,
            model=session.model,
            system=session.system,
            head_turn_id=session.head_turn_id,
            created_at=session.created_at,
            updated_at=session.updated_at,
        )


class TurnPublic(BaseModel):
    """One turn. An assistant turn's id is its reply_id."""

    id: str
    parent_id: str | None
    role: str
    content: str
    status: str
    model: str | None
    finish_reason: str | None
    usage: UsagePublic | None
    dropped_turn_ids: list[str]
    error: str | None
    created_at: float

    @classmethod
    def of(cls, turn: Turn) -> Self:
        """From the record."""
        return cls(
            id=turn.id,
            parent_id=turn.parent_id,
            role=turn.role,
            content=turn.content,
            status=turn.status,
            model=turn.model,
            finish_reason=turn.finish_reason,
            usage=UsagePublic.of(turn.usage) if turn.usage else None,
            dropped_turn_ids=list(turn.dropped_turn_ids),
            error=turn.error[1].message if turn.error else None,
            created_at=turn.created_at,
        )


class ConversationPublic(SessionPublic):
    """A session with its turns: `path` is the current branch from the first turn on, `turns` all branches."""

    path: list[str] = Field(description="Ids of the current branch's turns, oldest first.")
    turns: list[TurnPublic]

    @classmethod
    def of_conversation(cls, conversation: Conversation) -> Self:
        """From the record."""
        parents = {turn.id: turn.parent_id for turn in conversation.turns}
        path: list[str] = []
        turn_id = conversation.session.head_turn_id
        while turn_id is not None:
            path.append(turn_id)
            turn_id = parents[turn_id]
        session = SessionPublic.of(conversation.session)
        turns = [TurnPublic.of(turn) for turn in conversation.turns]
        return cls(**session.model_dump(), path=path[::-1], turns=turns)


class SessionList(BaseModel):
    """A page of sessions, last used first; for the next page send the last one's id as `before`."""

    sessions: list[SessionPublic]


class SessionChange(WireModel):
    """Body of PATCH: what is null stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"title": "Capitals"}]})

    title: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    head_turn_id: Id | None = Field(None, description="Continue from this assistant turn.")
