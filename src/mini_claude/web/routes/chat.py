"""The native API's chat: answers, whole or as server-sent events, and the stored sessions."""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from mini_claude.errors import MiniClaudeError
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.services.session_export import MEDIA_TYPES, ExportKind
from mini_claude.types import GenerationDelta
from mini_claude.web.deps import CallerDep, ServicesDep, caller_of, request_id_of
from mini_claude.web.error_handlers import known_error, native_error
from mini_claude.web.limit_headers import STREAM_RESPONSES, limit_headers
from mini_claude.web.schemas.chat import ChatRequest, ChatResponse, LogprobPublic, UsagePublic
from mini_claude.web.schemas.errors import errors
from mini_claude.web.schemas.sampling import Id
from mini_claude.web.schemas.sessions import ConversationPublic, SessionChange, SessionList, SessionPublic
from mini_claude.web.streaming import (
    EventStream,
    LastFrames,
    Reply,
    closing_on_error,
    collect,
    frame,
    interrupted,
    shutting_down,
    unless_gone,
)

EXPORTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {kind.partition(";")[0]: {} for kind in MEDIA_TYPES.values()}}
}

router = APIRouter(prefix="/api/v1/chat", tags=["chat"], dependencies=[Depends(caller_of)])


@dataclass(frozen=True, slots=True)
class _Started:
    """A reply on its way, with what both kinds of answer say about it."""

    reply: Reply
    reply_id: str
    model: str
    session_id: str | None = None
    user_turn_id: str | None = None
    dropped_turn_ids: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        return {
            "session_id": self.session_id,
            "reply_id": self.reply_id,
            "user_turn_id": self.user_turn_id,
            "model": self.model,
            "dropped_turn_ids": list(self.dropped_turn_ids),
        }


async def _start(body: ChatRequest, services: Services, caller: Caller) -> _Started:
    if body.session_id is None:
        served = await services.models.serving(caller, body.model)
        stream = await services.chat.reply(caller, served.name, body.to_messages(), body.sampling_params())
        return _Started(stream, stream.accepted.request_id, served.name)
    said = await services.chat.say(caller, body.session_turn())
    return _Started(said, said.reply_id, said.model, said.session_id, said.user_turn_id, said.dropped_turn_ids)


@router.post("/completions", response_model=ChatResponse, responses=STREAM_RESPONSES | errors(404, 409))
async def create_chat_completion(
    body: ChatRequest, request: Request, response: Response, services: ServicesDep, caller: CallerDep
) -> ChatResponse | Response:
    """Answer a conversation, or the next turn of a session."""
    started_at = time.perf_counter()
    if body.stream:
        started = await _start(body, services, caller)
        request_id = request_id_of(request)
        frames = _events(started, request_id, started_at)
        last_words = _error(shutting_down(), request_id)
        headers = await closing_on_error(started.reply, limit_headers(services, caller))
        return EventStream(frames, started.reply.aclose, services.settings.ping_seconds, last_words, headers)
    answer = await unless_gone(request, _whole(body, services, caller, started_at))
    response.headers.update(await limit_headers(services, caller))
    return answer


async def _whole(body: ChatRequest, services: Services, caller: Caller, started_at: float) -> ChatResponse:
    started = await _start(body, services, caller)
    try:
        finished = await collect(started.reply)
    finally:
        await started.reply.aclose()
    return ChatResponse(
        response=finished.text,
        tokens_used=finished.usage.total_tokens,
        processing_time=time.perf_counter() - started_at,
        finish_reason=finished.finish_reason,
        usage=UsagePublic.of(finished.usage),
        logprobs=None if finished.logprobs is None else [LogprobPublic.of(token) for token in finished.logprobs],
        **started.facts(),
    )


async def _events(started: _Started, request_id: str, started_at: float) -> AsyncGenerator[bytes, None]:
    """start, delta ..., end; or error in place of what is missing."""
    yield frame(started.facts(), "start")
    try:
        async for event in started.reply:
            delta = event.delta
            part = frame(_delta(event.number, delta), "delta") if delta.text or delta.logprobs else b""
            if delta.finish_reason is not None:
                yield LastFrames(part + frame(_end(event.number, delta, started_at), "end"))
                return
            if part:
                yield part
        raise interrupted()
    except Exception as error:
        yield LastFrames(_error(known_error(error, request_id), request_id))


def _error(error: MiniClaudeError, request_id: str) -> bytes:
    return frame({"error": native_error(error, request_id)}, "error")


def _delta(number: int, delta: GenerationDelta) -> dict[str, Any]:
    data: dict[str, Any] = {"number": number, "text": delta.text}
    if delta.logprobs is not None:
        data["logprobs"] = [LogprobPublic.of(token).model_dump() for token in delta.logprobs]
    return data


def _end(number: int, delta: GenerationDelta, started_at: float) -> dict[str, Any]:
    return {
        "number": number,
        "finish_reason": delta.finish_reason,
        "usage": UsagePublic.of(delta.usage).model_dump() if delta.usage else None,
        "tokens_used": delta.usage.total_tokens if delta.usage else 0,
        "processing_time": time.perf_counter() - started_at,
    }


@router.get("/sessions", responses=errors(404))
async def list_sessions(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Id | None = None,
    q: Annotated[str | None, Query(min_length=1, max_length=200, description="Text in the title or a turn.")] = None,
) -> SessionList:
    """The caller's sessions, last used first."""
    sessions = await services.chat.list(caller, limit, before, q)
    return SessionList(sessions=[SessionPublic.of(session) for session in sessions])


@router.get("/sessions/{session_id}", responses=errors(404))
async def get_session(session_id: str, services: ServicesDep, caller: CallerDep) -> ConversationPublic:
    """One session with all its turns."""
    return ConversationPublic.of_conversation(await services.chat.get(caller, session_id))


@router.get("/sessions/{session_id}/export", response_class=Response, responses=EXPORTED | errors(404))
async def export_session(
    session_id: str,
    services: ServicesDep,
    caller: CallerDep,
    kind: Annotated[ExportKind, Query(alias="format")] = "json",
) -> Response:
    """The session as a file: all branches as JSON, or the current one as Markdown."""
    made = await services.session_export.export(caller, session_id, kind)
    disposition = f'attachment; filename="{made.file_name}"'
    return Response(made.text, media_type=MEDIA_TYPES[kind], headers={"content-disposition": disposition})


@router.patch("/sessions/{session_id}", responses=errors(404, 409))
async def change_session(
    session_id: str, body: SessionChange, services: ServicesDep, caller: CallerDep
) -> ConversationPublic:
    """Rename a session, or continue from another of its turns."""
    if body.head_turn_id is not None:
        await services.chat.select(caller, session_id, body.head_turn_id)
    if body.title is not None:
        await services.chat.rename(caller, session_id, body.title)
    return ConversationPublic.of_conversation(await services.chat.get(caller, session_id))


@router.delete("/sessions/{session_id}", status_code=204, responses=errors(404))
async def delete_session(session_id: str, services: ServicesDep, caller: CallerDep) -> None:
    """Delete a session with all its turns."""
    await services.chat.delete(caller, session_id)
