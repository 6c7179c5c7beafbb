"""OpenAI's requests as this server reads them: every parameter that it honours, and its bounds.

Every optional parameter may also be null. What is not here is refused: see `openai_support`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mini_claude.types import Message, Role, SamplingParams
from mini_claude.web.schemas.openai_support import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    MESSAGE_NEUTRAL,
    STREAM_OPTIONS_NEUTRAL,
    unsupported,
    without_neutral,
)
from mini_claude.web.schemas.sampling import (
    LogitBias,
    MaxTokens,
    ModelName,
    NumLogprobs,
    Penalty,
    Seed,
    Stop,
    Temperature,
    TopP,
    WireModel,
    bias_of,
)

MAX_CHOICES = 4
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


def _text_of(content: object) -> object:
    """A string, or the texts of a list of text parts put together."""
    if not isinstance(content, list):
        return content
    if not content:
        raise PydanticCustomError("content_part", "The list of content parts is empty.")
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and set(part) == {"type", "text"} and isinstance(part["text"], str):
            texts.append(part["text"])
        elif isinstance(kind, str) and kind != "text":
            raise unsupported("", f"Content of type {kind[:40]!a} is not supported: send parts of type 'text' only.")
        else:
            raise PydanticCustomError("content_part", 'A content part must look like {"type": "text", "text": "..."}.')
    return "".join(texts)


Content = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | list[dict[str, str]])]


class ChatMessage(WireModel):
    """A message; `developer` is today's name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("role") in ("tool", "function"):
            raise unsupported("role", f"The role '{values['role']}' is not supported: this server has no tools.")
        return without_neutral(values, MESSAGE_NEUTRAL)

    def message(self) -> Message:
        """The plain value."""
        return Message(ROLES[self.role], self.content)


class StreamOptions(WireModel):
    """What a stream carries besides deltas."""

    include_usage: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: object) -> object:
        return without_neutral(values, STREAM_OPTIONS_NEUTRAL)


class OpenAIRequest(WireModel):
    """Parameters that both completion APIs have. `user` and the other labels change nothing about the text."""

    model: ModelName | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    max_tokens: MaxTokens | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "stream_options",
                "'stream_options' is only allowed together with 'stream': true.",
                {"param": "stream_options"},
            )
        return self

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _sampling(self, max_tokens: int | None, logprobs: int | None, index: int) -> SamplingParams:
        """Parameters of choice number `index`: each choice of a seeded request has a seed of its own."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=bias_of(self.logit_bias),
            seed=None if self.seed is None else (self.seed + index) % 2**63,
            stop=tuple(self.stop or ()),
            logprobs=logprobs,
        )


Label = Annotated[str, Field(max_length=512)]


class ChatCompletionRequest(OpenAIRequest):
    """Body of POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "default", "messages": [{"role": "user", "content": "Name the capital of France."}]}]
        }
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    max_completion_tokens: MaxTokens | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=16)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None  # prefixes are shared with and without one

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: object) -> object:
        return without_neutral(values, CHAT_NEUTRAL)

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(
                "top_logprobs", "'top_logprobs' needs 'logprobs': true.", {"param": "top_logprobs"}
            )
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise PydanticCustomError(
                "max_tokens",
                "'max_tokens' and 'max_completion_tokens' mean the same here and differ: send one of them.",
                {"param": "max_completion_tokens"},
            )
        return self

    def to_messages(self) -> tuple[Message, ...]:
        """The conversation as plain values."""
        return tuple(message.message() for message in self.messages)

    def sampling_params(self, index: int) -> SamplingParams:
        """Parameters of choice number `index`."""
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._sampling(max_tokens, (self.top_logprobs or 0) if self.logprobs else None, index)


Prompt = str | tuple[int, ...]


def _is_token_ids(value: object) -> bool:
    # bool is an int, but true is not a token id
    return isinstance(value, list) and bool(value) and all(type(item) is int and 0 <= item < 2**31 for item in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _prompts_of(value: Any) -> tuple[Prompt, ...]:
    """A text, token ids, or a list of either."""
    if _is_text(value) or _is_token_ids(value):
        value = [value]
    if isinstance(value, list) and value and all(_is_text(item) or _is_token_ids(item) for item in value):
        return tuple(item if isinstance(item, str) else tuple(item) for item in value)
    raise PydanticCustomError("prompt", "'prompt' must be a text, a non-empty list of token ids, or a list of either.")


class CompletionRequest(OpenAIRequest):
    """Body of POST /v1/completions: the model continues a text, without any chat template."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "default", "prompt": "Once upon a time", "max_tokens": 32}]}
    )

    prompt: Annotated[
        Sequence[Prompt],
        PlainValidator(_prompts_of, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    logprobs: NumLogprobs | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: object) -> object:
        return without_neutral(values, COMPLETION_NEUTRAL)

    @field_validator("prompt")
    @classmethod
    def _limit_prompts(cls, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        if len(prompts) > MAX_CHOICES:
            raise PydanticCustomError("prompt", f"At most {MAX_CHOICES} prompts are answered in one request.")
        return prompts

    @model_validator(mode="after")
    def _limit_choices(self) -> Self:
        if len(self.prompt) * (self.n or 1) > MAX_CHOICES:
            raise PydanticCustomError(
                "n", f"The number of prompts times 'n' may be {MAX_CHOICES} at most.", {"param": "n"}
            )
        return self

    def sampling_params(self, index: int) -> SamplingParams:
        """Parameters of choice number `index`."""
        return self._sampling(self.max_tokens or DEFAULT_COMPLETION_TOKENS, self.logprobs, index)
