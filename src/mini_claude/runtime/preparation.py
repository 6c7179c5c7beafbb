"""From what a client asks to a request for the engine: render, tokenize, fit, and, for a trace, remember how."""

import time
from dataclasses import dataclass, replace

from mini_claude.models.base_model import ChatModel, TextCodec
from mini_claude.runtime.context_window import fit
from mini_claude.runtime.messages import StartChat, StartCompletion
from mini_claude.types import GenerationRequest, Message, PromptToken, PromptTrace, SamplingParams


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, how many oldest messages were left out of it, and its prompt in pieces where it is traced."""

    request: GenerationRequest
    dropped_messages: int = 0
    prompt: PromptTrace | None = None


def prepare(model: ChatModel, message: StartChat | StartCompletion) -> Prepared:
    """Messages or text to a request; long texts take a while.

    Raises `ContextLengthExceeded`, `InvalidRequest`, `UnsupportedRole`.
    """
    params = replace(message.params, stop_token_ids=(*message.params.stop_token_ids, *model.stop_token_ids))
    if isinstance(message, StartCompletion):
        prompt_ids = message.prompt if isinstance(message.prompt, tuple) else model.codec.encode(message.prompt)
        return Prepared(_request(message, tuple(prompt_ids), params))
    started = time.perf_counter()
    token_ids, dropped = fit(model, message.messages, params.max_tokens, drop_oldest=message.drop_oldest)
    seconds = time.perf_counter() - started
    params = replace(params, stop=(*params.stop, *model.stop_strings))
    if message.answer is not None:
        forced = answer_token_ids(model, message.messages, message.answer, ended=message.answer_ended)
        params = replace(params, forced_token_ids=forced, max_tokens=len(forced))
    request = _request(message, token_ids, params)
    prompt = None if params.trace is None else _trace(model, message, token_ids, seconds)
    return Prepared(request, dropped, prompt)


def _request(
    message: StartChat | StartCompletion, token_ids: tuple[int, ...], params: SamplingParams
) -> GenerationRequest:
    return GenerationRequest(message.request_id, token_ids, params, message.adapter, message.owner)


def answer_token_ids(model: ChatModel, messages: tuple[Message, ...], answer: str, *, ended: bool) -> tuple[int, ...]:
    """Token ids of an answer as training would see them, with the end of its turn where it came to one."""
    rendered = model.render((*messages, Message("assistant", answer)), add_generation_prompt=False)
    token_ids: list[int] = []
    # The answer is the last stretch that the assistant wrote; scaffolding may follow it.
    for token_id, masked in reversed(tuple(zip(rendered.token_ids, rendered.assistant_mask, strict=True))):
        if masked:
            token_ids.insert(0, token_id)
        elif token_ids:
            break
    if not ended:
        while token_ids and token_ids[-1] in model.stop_token_ids:
            token_ids.pop()
    return tuple(token_ids)


def _trace(model: ChatModel, message: StartChat, token_ids: tuple[int, ...], seconds: float) -> PromptTrace:
    template_seconds = model.render(message.messages).template_seconds
    tokens = tuple(_prompt_token(model.codec, token_id) for token_id in token_ids)
    return PromptTrace(tokens, {"render": template_seconds, "tokenize": max(0.0, seconds - template_seconds)})


def _prompt_token(codec: TextCodec, token_id: int) -> PromptToken:
    token_bytes = codec.token_bytes(token_id)
    is_control = bool(token_bytes) and not codec.shown_bytes(token_id)
    return PromptToken(token_id, token_bytes.decode("utf-8", "replace"), is_control)
