"""/ws/training/{job_id}: a job's events, past ones first and then live, until the job has ended.

event  {number, event, data, created_at}     numbers count from 1 without gaps; ?after=N leaves out the first N
end    {state}                               the job has ended; the server closes
error  {code, message, param, request_id}    instead; the server closes. Also when the key or token ends meanwhile
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from starlette.websockets import WebSocket, WebSocketDisconnect

from mini_claude.errors import MiniClaudeError, PayloadTooLarge
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.web.deps import ServicesDep, SocketCallerDep, socket_caller
from mini_claude.web.json_socket import JsonSocket

WATCH_SECONDS: Final = 1.0  # how often a key or token is looked at while nothing happens

router = APIRouter(tags=["training"], dependencies=[Depends(socket_caller)])


@router.websocket("/ws/training/{job_id}")
async def training_socket(
    websocket: WebSocket,
    job_id: str,
    services: ServicesDep,
    caller: SocketCallerDep,
    after: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> None:
    """See the top of this file."""
    with contextlib.suppress(WebSocketDisconnect):  # clients come and go
        socket = await JsonSocket.accept(websocket, services)
        try:
            known = caller or await socket.authenticate()
            telling = _tell(socket, services, known, job_id, after)
            await _until_gone(socket, telling, _watch(services, known))
        except MiniClaudeError as error:
            await socket.send_error(error)
            await socket.refuse(error)
        else:
            await socket.close()


async def _tell(socket: JsonSocket, services: Services, caller: Caller, job_id: str, after: int) -> None:
    async for event in services.training.follow(caller, job_id, after):
        await services.credentials.require_active(caller)  # a connection may well outlive its key or token
        await socket.send("event", number=event.number, event=event.type, data=event.data, created_at=event.created_at)
    await socket.send("end", state=(await services.training.get(caller, job_id)).state)


async def _until_gone(
    socket: JsonSocket, telling: Coroutine[Any, Any, None], watching: Coroutine[Any, Any, None]
) -> None:
    """Tell, and stop at once when the client goes away, or may not stay; what it sends has no meaning here."""
    task = asyncio.create_task(telling)
    others = [asyncio.create_task(_read_on(socket)), asyncio.create_task(watching)]
    try:
        await asyncio.wait((task, *others), return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            if other.done() and not task.done():
                await other  # raises what ended it
        await task
    finally:
        for each in (task, *others):
            each.cancel()
        await asyncio.gather(task, *others, return_exceptions=True)


async def _watch(services: Services, caller: Caller) -> None:
    """Raise `Unauthorized` when the caller's key or token has ended, also while there is nothing to tell."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        await services.credentials.require_active(caller)


async def _read_on(socket: JsonSocket) -> None:
    while True:
        with contextlib.suppress(PayloadTooLarge):
            await socket.receive()
