"""OpenAI's answers as the API's description tells them; `web/openai_format.py` makes those of completions."""

from typing import Literal

from pydantic import BaseModel

from mini_claude.types import FinishReason


class OpenAICandidate(BaseModel):
    """A token that was or could have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class OpenAITokenLogprob(OpenAICandidate):
    """A token of the answer and the most probable ones at its place."""

    top_logprobs: list[OpenAICandidate]


class ChatLogprobs(BaseModel):
    """The tokens of a message."""

    content: list[OpenAITokenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class CompletionLogprobs(BaseModel):
    """The tokens of a text; `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of `n` continuations of each prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class PromptDetails(BaseModel):
    """`cached_tokens` of the prompt needed no computing."""

    cached_tokens: int


class OpenAIUsage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class _Completion(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: None
    usage: OpenAIUsage


class ChatCompletion(_Completion):
    """Answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Completion(_Completion):
    """Answer of POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class OpenAIModel(BaseModel):
    """A model; `created` is when it was loaded, in Unix seconds, 0 where it is not."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mini-claude"] = "mini-claude"


class OpenAIModelList(BaseModel):
    """Every model that a request may name."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]
