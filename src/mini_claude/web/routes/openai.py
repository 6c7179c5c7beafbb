"""OpenAI's API: /v1/chat/completions, /v1/completions and /v1/models."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mini_claude.runtime.runtime import ReplyStream
from mini_claude.types import ModelInfo
from mini_claude.web.deps import ServicesDep, caller_of, request_id_of
from mini_claude.web.openai_format import ChatShape, CompletionShape, Shape, answer, chunks, error_frame
from mini_claude.web.schemas.openai import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from mini_claude.web.streaming import EventStream, collect_all, shutting_down, unless_gone

router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(caller_of)])

Start = Callable[[], Awaitable[ReplyStream]]


@router.post("/chat/completions", response_model=None)
async def create_chat_completion(body: ChatCompletionRequest, request: Request, services: ServicesDep) -> Response:
    """Answer a conversation."""
    served = await services.models.serving(body.model)
    messages = body.to_messages()

    def choice(index: int) -> Start:
        return lambda: services.chat.reply(served.name, messages, body.sampling_params(index))

    starts = [choice(index) for index in range(body.n or 1)]
    ping_seconds = services.settings.ping_seconds
    return await _respond(request, ping_seconds, body, ChatShape(), served.name, starts, num_prompts=1)


@router.post("/completions", response_model=None)
async def create_completion(body: CompletionRequest, request: Request, services: ServicesDep) -> Response:
    """Continue a text."""
    served = await services.models.serving(body.model)
    num_choices = body.n or 1

    def choice(index: int) -> Start:
        prompt = body.prompt[index // num_choices]
        return lambda: services.chat.complete(served.name, prompt, body.sampling_params(index % num_choices))

    starts = [choice(index) for index in range(len(body.prompt) * num_choices)]
    return await _respond(
        request, services.settings.ping_seconds, body, CompletionShape(), served.name, starts, len(body.prompt)
    )


async def _respond(
    request: Request,
    ping_seconds: float,
    body: OpenAIRequest,
    shape: Shape,
    model: str,
    starts: Sequence[Start],
    num_prompts: int,
) -> Response:
    """Start every choice, then stream or collect them. What is refused is refused before any header is sent."""
    async with AsyncExitStack() as stack:

        async def start_all() -> list[ReplyStream]:
            replies: list[ReplyStream] = []
            for start in starts:  # each is accepted within milliseconds; they run side by side from then on
                replies.append(await start())
                stack.push_async_callback(replies[-1].aclose)
            return replies

        async def whole() -> dict[str, Any]:
            return answer(shape, model, await collect_all(await start_all()), num_prompts)

        if not body.stream:
            return JSONResponse(await unless_gone(request, whole()))
        frames = chunks(
            shape,
            model,
            await start_all(),
            request_id_of(request),
            include_usage=body.include_usage,
            num_prompts=num_prompts,
        )
        return EventStream(frames, stack.pop_all().aclose, ping_seconds, error_frame(shutting_down()))


@router.get("/models")
async def list_models(services: ServicesDep) -> dict[str, Any]:
    """Every model that a request may name; one that is not loaded is loaded by its first request."""
    return {"object": "list", "data": [_model(info) for info in await services.models.list()]}


@router.get("/models/{model:path}")
async def retrieve_model(model: str, services: ServicesDep) -> dict[str, Any]:
    """One model."""
    return _model(await services.models.get(model))


def _model(info: ModelInfo) -> dict[str, Any]:
    return {"id": info.name, "object": "model", "created": int(info.loaded_at or 0), "owned_by": "mini-claude"}
