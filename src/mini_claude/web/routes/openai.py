"""OpenAI's API: /v1/chat/completions, /v1/completions and /v1/models."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mini_claude.runtime.runtime import ReplyStream
from mini_claude.services.identity import Caller
from mini_claude.services.permit import Permit
from mini_claude.services.services import Services
from mini_claude.types import ModelInfo
from mini_claude.web.deps import CallerDep, ServicesDep, caller_of, request_id_of
from mini_claude.web.limit_headers import limit_headers, openai_responses
from mini_claude.web.openai_format import ChatShape, CompletionShape, Shape, answer, chunks, error_frame
from mini_claude.web.schemas.errors import errors
from mini_claude.web.schemas.openai import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from mini_claude.web.schemas.openai_answers import ChatCompletion, Completion, OpenAIModel, OpenAIModelList
from mini_claude.web.streaming import EventStream, collect_all, shutting_down, unless_gone

router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(caller_of)])

Start = Callable[[Permit], Awaitable[ReplyStream]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The replies that a request wants, how each is started and how long it may get, and how the answer is spelled."""

    shape: Shape
    model: str
    starts: Sequence[Start]
    max_tokens: int | None
    num_prompts: int = 1


@router.post("/chat/completions", response_model=None, responses=openai_responses(ChatCompletion) | errors(404, 422))
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, services: ServicesDep, caller: CallerDep
) -> Response:
    """Answer a conversation."""
    served = await services.models.serving(caller, body.model)
    messages = body.to_messages()

    def choice(index: int) -> Start:
        params = body.sampling_params(index)
        return lambda permit: services.chat.reply(caller, served.name, messages, params, permit)

    starts = [choice(index) for index in range(body.n or 1)]
    plan = _Plan(ChatShape(), served.name, starts, body.sampling_params(0).max_tokens)
    return await _respond(request, services, caller, body, plan)


@router.post("/completions", response_model=None, responses=openai_responses(Completion) | errors(404, 422))
async def create_completion(
    body: CompletionRequest, request: Request, services: ServicesDep, caller: CallerDep
) -> Response:
    """Continue a text."""
    served = await services.models.serving(caller, body.model)
    num_choices = body.n or 1

    def choice(index: int) -> Start:
        prompt, params = body.prompt[index // num_choices], body.sampling_params(index % num_choices)
        return lambda permit: services.chat.complete(caller, served.name, prompt, params, permit)

    starts = [choice(index) for index in range(len(body.prompt) * num_choices)]
    plan = _Plan(CompletionShape(), served.name, starts, body.sampling_params(0).max_tokens, len(body.prompt))
    return await _respond(request, services, caller, body, plan)


async def _respond(request: Request, services: Services, caller: Caller, body: OpenAIRequest, plan: _Plan) -> Response:
    """Start every choice, then stream or collect them. What is refused is refused before any header is sent."""
    async with AsyncExitStack() as stack:

        async def start_all() -> list[ReplyStream]:
            replies: list[ReplyStream] = []
            permits = await services.limits.admit(caller, [plan.max_tokens] * len(plan.starts))  # for all, or for none
            for permit in permits:
                stack.push_async_callback(permit.settle, 0)  # for those whose replies are never started
            for start, permit in zip(plan.starts, permits, strict=True):
                # Each is accepted within milliseconds; they run side by side from then on.
                replies.append(await start(permit))
                stack.push_async_callback(replies[-1].aclose)
            return replies

        async def whole() -> dict[str, Any]:
            return answer(plan.shape, plan.model, await collect_all(await start_all()), plan.num_prompts)

        if not body.stream:
            made = await unless_gone(request, whole())
            return JSONResponse(made, headers=await limit_headers(services, caller))
        frames = chunks(
            plan.shape,
            plan.model,
            await start_all(),
            request_id_of(request),
            include_usage=body.include_usage,
            num_prompts=plan.num_prompts,
        )
        headers = await limit_headers(services, caller)
        ping_seconds = services.settings.ping_seconds
        return EventStream(frames, stack.pop_all().aclose, ping_seconds, error_frame(shutting_down()), headers)


@router.get("/models")
async def list_models(services: ServicesDep, caller: CallerDep) -> OpenAIModelList:
    """Every model that the caller's requests may name; one that is not loaded is loaded by its first request."""
    return OpenAIModelList(data=[_model(info) for info in await services.models.list(caller)])


@router.get("/models/{model:path}", responses=errors(404))
async def retrieve_model(model: str, services: ServicesDep, caller: CallerDep) -> OpenAIModel:
    """One model."""
    return _model(await services.models.get(caller, model))


def _model(info: ModelInfo) -> OpenAIModel:
    return OpenAIModel(id=info.name, created=int(info.loaded_at or 0))
