"""/ws/chat: replies that can be stopped while they run and taken up again after the connection broke.

Frames are JSON objects with a `type`; schemas/socket.py has the client's. The server sends

    ready                                                     authenticated, go on
    start  {session_id, user_turn_id, reply_id, model, dropped_turn_ids}
    delta  {reply_id, number, text}                           numbers count from 1 and may have gaps
    end    {reply_id, number, finish_reason, usage}
    error  {code, message, param, reply_id, request_id}       reply_id null: a frame could not be served

A client whose connection breaks sends `resume` with the number of the last frame that it got. The reply itself does
not notice: only `stop` ends it early.
"""

import asyncio
import contextlib
from typing import Final

from fastapi import APIRouter, Depends
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from mini_claude.errors import Conflict, InvalidRequest, MiniClaudeError, PayloadTooLarge, Unauthorized
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.services.session_reply import SessionReply
from mini_claude.web.deps import ServicesDep, SocketCallerDep, caller_with_key, socket_caller
from mini_claude.web.error_handlers import known_error, shape_error
from mini_claude.web.json_socket import JsonSocket, object_in
from mini_claude.web.schemas.chat import UsagePublic
from mini_claude.web.schemas.socket import (
    CLIENT_FRAME,
    FRAME_TYPES,
    AuthFrame,
    ChatFrame,
    ClientFrame,
    RegenerateFrame,
    ResumeFrame,
    StopFrame,
)
from mini_claude.web.streaming import interrupted

router = APIRouter(tags=["chat"], dependencies=[Depends(socket_caller)])

MAX_REPLIES: Final = 4  # listened to at once by one connection


@router.websocket("/ws/chat")
async def chat_socket(websocket: WebSocket, services: ServicesDep, caller: SocketCallerDep) -> None:
    """See the top of this file."""
    with contextlib.suppress(WebSocketDisconnect):  # clients come and go
        connection = ChatConnection(await JsonSocket.accept(websocket, services), services)
        try:
            await connection.serve(caller)
        finally:
            await connection.aclose()


class ChatConnection:
    """One client: reads its frames while any number of its replies are being sent."""

    def __init__(self, socket: JsonSocket, services: Services) -> None:
        self._socket = socket
        self._services = services
        self._listening: dict[asyncio.Task[None], SessionReply | None] = {}

    async def serve(self, caller: Caller | None) -> None:
        """Answer frames until the client goes away (`WebSocketDisconnect`) or may not stay."""
        try:
            caller = caller or await self._socket.authenticate()
            await self._socket.send("ready")
            while True:
                text = await self._socket.receive()
                try:
                    await self._answer(_parse(text), caller)
                except (Unauthorized, PayloadTooLarge):
                    raise
                except MiniClaudeError as error:
                    await self._send_error(error)
        except (Unauthorized, PayloadTooLarge) as error:
            await self._send_error(error)
            await self._socket.refuse(error)

    async def aclose(self) -> None:
        """Stop listening to all replies; they go on without this connection."""
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    async def _answer(self, frame: ClientFrame, caller: Caller) -> None:
        await self._services.credentials.require_active(caller)  # a connection may well outlive its key
        match frame:
            case AuthFrame():
                if await self._services.credentials.needed():
                    await caller_with_key(self._services, frame.key)
                await self._socket.send("ready")
            case ChatFrame() | RegenerateFrame() | ResumeFrame():
                if len(self._listening) >= MAX_REPLIES:
                    raise Conflict(
                        f"This connection listens to {MAX_REPLIES} replies already: wait for one to end, or stop it.",
                        code="too_many_replies",
                    )
                task = asyncio.create_task(self._listen(frame, caller))
                self._listening[task] = None
                task.add_done_callback(self._listening.pop)
            case StopFrame():
                await self._stop(frame.reply_id, caller)

    async def _stop(self, reply_id: str | None, caller: Caller) -> None:
        if reply_id is not None:
            await self._services.chat.stop(caller, reply_id)
            return
        for reply in self._listening.values():
            if reply is not None:
                await self._services.chat.stop(caller, reply.reply_id)

    async def _listen(self, frame: ChatFrame | RegenerateFrame | ResumeFrame, caller: Caller) -> None:
        """Send one reply from its start, or from where the client left it, to its end."""
        task = asyncio.current_task()
        assert task is not None
        reply: SessionReply | None = None
        try:
            reply = await self._open(frame, caller)
            self._listening[task] = reply
            await self._socket.send(
                "start",
                session_id=reply.session_id,
                user_turn_id=reply.user_turn_id,
                reply_id=reply.reply_id,
                model=reply.model,
                dropped_turn_ids=list(reply.dropped_turn_ids),
            )
            await self._send_events(reply, frame.after if isinstance(frame, ResumeFrame) else 0)
        except WebSocketDisconnect:
            return  # the reading side sees it too and ends the connection
        except Exception as error:
            with contextlib.suppress(WebSocketDisconnect):
                known = known_error(error, self._socket.request_id)
                await self._send_error(known, reply.reply_id if reply is not None else None)
        finally:
            if reply is not None:
                await reply.aclose()

    async def _open(self, frame: ChatFrame | RegenerateFrame | ResumeFrame, caller: Caller) -> SessionReply:
        if isinstance(frame, ResumeFrame):
            # The last event gives two frames of one number, delta and end; the client may have got only the first.
            return await self._services.chat.resume(caller, frame.reply_id, max(frame.after - 1, 0))
        return await self._services.chat.say(caller, frame.session_turn())

    async def _send_events(self, reply: SessionReply, after: int) -> None:
        async for event in reply:
            delta = event.delta
            if delta.text and event.number > after:
                await self._socket.send("delta", reply_id=reply.reply_id, number=event.number, text=delta.text)
            if delta.finish_reason is not None:
                await self._socket.send(
                    "end",
                    reply_id=reply.reply_id,
                    number=event.number,
                    finish_reason=delta.finish_reason,
                    usage=UsagePublic.of(delta.usage).model_dump() if delta.usage else None,
                )
                return
        raise interrupted()

    async def _send_error(self, error: MiniClaudeError, reply_id: str | None = None) -> None:
        await self._socket.send_error(error, reply_id=reply_id)


def _parse(text: str) -> ClientFrame:
    """The frame in `text`. Raises `InvalidRequest` that names the field."""
    values = object_in(text)
    if values.get("type") not in FRAME_TYPES:
        raise InvalidRequest(f"'type' must be one of {', '.join(FRAME_TYPES)}.", param="type")
    try:
        return CLIENT_FRAME.validate_python(values)
    except ValidationError as error:
        raise shape_error(error.errors()) from error
