"""The native API's chat request and its answer.

A request without `session_id` is stateless: `messages` is the whole conversation, and nothing is stored. With a
`session_id` ("new" makes a session) the server knows the rest and `messages` holds what is new:

    session_id "new", one user message              a new session
    session_id, one user message                    the next turn
    session_id, one user message, parent_id         a branch: the message stands after that turn instead ("": first)
    session_id, messages [], parent_id              that user turn is answered once more; the old answer stays
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mini_claude.services.session_turn import SessionTurn
from mini_claude.types import Message, TokenLogprob, Usage
from mini_claude.web.schemas.sampling import Id, ModelName, SamplingFields, WireModel

NEW_SESSION = "new"


def field_error(param: str, message: str) -> PydanticCustomError:
    """An error of one field that a validator of the whole body found."""
    return PydanticCustomError("invalid_field", "{why}", {"param": param, "why": message})


class ChatMessage(WireModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(SamplingFields):
    """Body of POST /api/v1/chat/completions; see the top of this file for sessions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "Name the capital of France."}]},
                {"session_id": "new", "messages": [{"role": "user", "content": "Hello"}], "stream": True},
            ]
        }
    )

    messages: list[ChatMessage] = Field(description="The conversation, or in a session the one new user message.")
    model: ModelName | None = Field(None, description="A model's name; null: the session's, else the default one.")
    session_id: Id | None = Field(None, description='A session\'s id, "new" for a new one, null for none.')
    system: str | None = Field(None, description="System prompt; in a session it is kept from then on.")
    parent_id: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="Sessions only: the turn that this one follows, or the user turn to be answered again."
    )
    stream: bool = Field(False, description="Answer with server-sent events: start, delta ..., end or error.")

    @model_validator(mode="after")
    def _check_session(self) -> Self:
        if self.session_id is None:
            if not self.messages:
                raise field_error("messages", "send at least one message.")
            if self.parent_id is not None:
                raise field_error("parent_id", "turns exist in sessions only: send session_id too.")
            if self.system is not None and self.messages[0].role == "system":
                raise field_error("system", "there is a system message already: send one of the two.")
        elif not self.messages:
            if self.parent_id is None:
                raise field_error("messages", "send one user message, or the user turn's id as parent_id.")
        elif len(self.messages) > 1 or self.messages[0].role != "user":
            raise field_error("messages", "a session keeps the earlier turns: send only the new user message.")
        return self

    def to_messages(self) -> tuple[Message, ...]:
        """The conversation of a stateless request."""
        system = () if self.system is None else (Message("system", self.system),)
        return (*system, *(Message(message.role, message.content) for message in self.messages))

    def session_turn(self) -> SessionTurn:
        """The turn of a request in a session."""
        return SessionTurn(
            session_id=None if self.session_id == NEW_SESSION else self.session_id,
            content=self.messages[0].content if self.messages else None,
            params=self.sampling_params(),
            model=self.model,
            system=self.system,
            parent_id=self.parent_id,
        )


class UsagePublic(BaseModel):
    """Token counts; `cached_tokens` of the prompt needed no computing."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """From the plain value."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            cached_tokens=usage.cached_tokens,
        )


class CandidatePublic(BaseModel):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobPublic(CandidatePublic):
    """A token of the answer and the most probable ones at its place."""

    top: list[CandidatePublic]

    @classmethod
    def of(cls, token: TokenLogprob) -> Self:
        """From the plain value."""
        return cls(
            token=token.token,
            logprob=token.logprob,
            bytes=list(token.token_bytes),
            top=[
                CandidatePublic(token=top.token, logprob=top.logprob, bytes=list(top.token_bytes)) for top in token.top
            ],
        )


class ChatResponse(BaseModel):
    """An answer. `tokens_used` counts prompt and answer, `processing_time` is in seconds."""

    response: str
    tokens_used: int
    processing_time: float
    session_id: str | None
    model: str
    finish_reason: str
    usage: UsagePublic
    reply_id: str
    user_turn_id: str | None
    dropped_turn_ids: list[str] = Field(description="Oldest turns of the session that the context had no room for.")
    logprobs: list[LogprobPublic] | None = None
