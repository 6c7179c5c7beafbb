"""Replies in OpenAI's words: whole answers and the chunks of a stream, for both completion APIs."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol
from uuid import uuid4

from mini_claude.errors import MiniClaudeError
from mini_claude.runtime.messages import ReplyEvent
from mini_claude.types import FinishReason, TokenLogprob, TopLogprob, Usage
from mini_claude.web.error_handlers import known_error, openai_error
from mini_claude.web.streaming import FinishedReply, LastFrames, Reply, ascii_json, frame, interrupted, merge

DONE: Final = b"data: [DONE]\n\n"
Json = dict[str, Any]


def _candidate(token: TokenLogprob | TopLogprob) -> Json:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token_bytes)}


def usage_of(usages: Sequence[Usage], num_prompts: int = 1) -> Json:
    """Token counts of a request. Each prompt counts once, however many choices were made from it."""
    firsts = usages[:: len(usages) // num_prompts]
    prompt_tokens = sum(usage.prompt_tokens for usage in firsts)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in firsts)},
    }


class Shape(Protocol):
    """How one of the two APIs spells a choice."""

    id_prefix: str
    whole: str  # `object` of an answer
    chunk: str  # `object` of a part of a stream

    def choice(self, index: int, reply: FinishedReply) -> Json:
        """A choice of a whole answer."""
        ...

    def opening(self, index: int) -> Json | None:
        """The choice that comes before any text, if there is one."""
        ...

    def delta(self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        """A choice with some more text."""
        ...

    def ending(self, index: int, reason: FinishReason) -> Json:
        """The last choice with this index."""
        ...


class ChatShape:
    """/v1/chat/completions."""

    id_prefix = "chatcmpl-"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def choice(self, index: int, reply: FinishedReply) -> Json:
        """See `Shape`."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": reply.text, "refusal": None},
            "logprobs": self._logprobs(reply.logprobs),
            "finish_reason": reply.finish_reason,
        }

    def opening(self, index: int) -> Json:
        """See `Shape`."""
        return self._part(index, {"role": "assistant", "content": ""}, None, None)

    def delta(self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        """See `Shape`."""
        return self._part(index, {"content": text}, self._logprobs(logprobs), None)

    def ending(self, index: int, reason: FinishReason) -> Json:
        """See `Shape`."""
        return self._part(index, {}, None, reason)

    @staticmethod
    def _part(index: int, delta: Json, logprobs: Json | None, reason: FinishReason | None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    @staticmethod
    def _logprobs(tokens: Sequence[TokenLogprob] | None) -> Json | None:
        if tokens is None:
            return None
        content = [{**_candidate(token), "top_logprobs": [_candidate(top) for top in token.top]} for token in tokens]
        return {"content": content, "refusal": None}


class CompletionShape:
    """/v1/completions. It counts characters: `text_offset` is where each token begins in the choice's text."""

    id_prefix = "cmpl-"
    whole = "text_completion"
    chunk = "text_completion"

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}

    def choice(self, index: int, reply: FinishedReply) -> Json:
        """See `Shape`."""
        return self._part(index, reply.text, self._logprobs(index, reply.logprobs), reply.finish_reason)

    def opening(self, index: int) -> None:
        """Nothing: a text has no role."""
        del index

    def delta(self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        """See `Shape`."""
        return self._part(index, text, self._logprobs(index, logprobs), None)

    def ending(self, index: int, reason: FinishReason) -> Json:
        """See `Shape`."""
        return self._part(index, "", None, reason)

    @staticmethod
    def _part(index: int, text: str, logprobs: Json | None, reason: FinishReason | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob] | None) -> Json | None:
        if tokens is None:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.setdefault(index, 0))
            self._offsets[index] += len(token.token)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{top.token: top.logprob for top in token.top} for token in tokens],
            "text_offset": offsets,
        }


def _head(shape: Shape, kind: str, model: str) -> Json:
    return {
        "id": f"{shape.id_prefix}{uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def answer(shape: Shape, model: str, replies: Sequence[FinishedReply], num_prompts: int = 1) -> Json:
    """A whole answer. Raises `Unavailable` when the server cut off one of the replies."""
    if any(reply.finish_reason == "abort" for reply in replies):
        raise interrupted()
    return {
        **_head(shape, shape.whole, model),
        "choices": [shape.choice(index, reply) for index, reply in enumerate(replies)],
        "usage": usage_of([reply.usage for reply in replies], num_prompts),
    }


def error_frame(error: MiniClaudeError) -> bytes:
    """The last frame of a stream that broke."""
    return frame({"error": openai_error(error)})


class _ChunkFrames:
    """Frames of chunks with one choice each. What all of them say is encoded once."""

    def __init__(self, chunk: Json) -> None:
        """`chunk`: one without choices."""
        before, after = frame(chunk).split(b'"choices":[]')  # nowhere else: in a string the quotes have backslashes
        self._before, self._after = before + b'"choices":[', b"]" + after

    def of(self, choice: Json) -> bytes:
        """The chunk with this choice."""
        return self._before + ascii_json(choice) + self._after


async def chunks(
    shape: Shape,
    model: str,
    replies: Sequence[Reply],
    request_id: str,
    *,
    include_usage: bool,
    num_prompts: int = 1,
) -> AsyncGenerator[bytes, None]:
    """The frames of a stream, `[DONE]` included. An error becomes the last frame, with nothing after it.

    What is known at the same time comes as one piece.
    """
    head = _head(shape, shape.chunk, model)
    frames = _ChunkFrames({**head, "choices": []} | ({"usage": None} if include_usage else {}))
    usages: dict[int, Usage] = {}
    for index in range(len(replies)):
        opening = shape.opening(index)
        if opening is not None:
            yield frames.of(opening)
    part = b""
    num_open = len(replies)
    try:
        async with aclosing(merge(replies)) as events:
            async for index, event in events:
                part = b"".join([frames.of(choice) for choice in _choices(shape, index, event)])
                if event.delta.usage is not None:
                    usages[index] = event.delta.usage
                num_open -= event.delta.finish_reason is not None
                if part and num_open:
                    yield part
                    part = b""
    except Exception as error:
        yield LastFrames(part + error_frame(known_error(error, request_id)))
        return
    counts = b""
    if include_usage:
        usage = usage_of([usages[index] for index in range(len(replies))], num_prompts)
        counts = frame({**head, "choices": [], "usage": usage})
    yield LastFrames(part + counts + DONE)


def _choices(shape: Shape, index: int, event: ReplyEvent) -> list[Json]:
    delta = event.delta
    choices: list[Json] = []
    if delta.text or delta.logprobs:  # a token that is half a character has no text yet, but a logprob
        choices.append(shape.delta(index, delta.text, delta.logprobs))
    if delta.finish_reason == "abort":
        raise interrupted()
    if delta.finish_reason is not None:
        choices.append(shape.ending(index, delta.finish_reason))
    return choices
