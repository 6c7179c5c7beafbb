"""The body of POST /api/v1/xray; the answer is `services.xray.Xray` as it is."""

from typing import Annotated, Final, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from mini_claude.services.xray import DEFAULT_CANDIDATES, MAX_CANDIDATES, MAX_TOKENS
from mini_claude.types import Message
from mini_claude.web.schemas.chat import ChatMessage, field_error
from mini_claude.web.schemas.sampling import Id, ModelName, SamplingFields

EXAMPLE: Final[JsonDict] = {
    "messages": [{"role": "user", "content": "Name the capital of France."}],
    "max_tokens": 16,
    "temperature": 0.7,
    "top_p": 0.9,
    "candidates": 5,
}


class XrayRequest(SamplingFields):
    """Either `messages`, which are answered now, or `reply_id`, a stored reply to be read again."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    messages: list[ChatMessage] | None = Field(None, description="A conversation to be answered.")
    reply_id: Id | None = Field(None, description="An assistant turn of one of your sessions.")
    model: ModelName | None = Field(None, description="With messages: a model's name; null: the default one.")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = Field(128, description="The most tokens of the answer.")
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = Field(
        DEFAULT_CANDIDATES, description="How many of the most probable tokens are shown at each place."
    )
    prefix_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKENS)] | None = Field(
        None, description="Token ids with which the answer begins; it goes on from there."
    )

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.messages is None) == (self.reply_id is None):
            raise field_error("messages", "send either messages or reply_id.")
        if self.reply_id is not None and self.model is not None:
            raise field_error("model", "a stored reply is looked at with its own model: leave model out.")
        if self.logprobs is not None:
            raise field_error("logprobs", "an X-ray shows probabilities already: use candidates.")
        return self

    def to_messages(self) -> tuple[Message, ...]:
        """The conversation."""
        return tuple(Message(message.role, message.content) for message in self.messages or ())
