"""A WebSocket that carries JSON objects with a `type`: frames within bounds, errors in the native shape, one sender
at a time, and the key in the first frame of a client that could send it nowhere else."""

import asyncio
import json
from typing import Any, Final

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from mini_claude.errors import InvalidRequest, MiniClaudeError, PayloadTooLarge, Unauthorized
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.web.deps import KEY_SENTENCE, caller_with_key, request_id_of
from mini_claude.web.error_handlers import native_error
from mini_claude.web.request_body import check_depth
from mini_claude.web.schemas.socket import AuthFrame

SUBPROTOCOL: Final = "mini-claude"  # a browser that offers its key as a subprotocol offers this one too
AUTH_SECONDS: Final = 10.0
AUTH_BYTES: Final = 4096  # of the frame with the key
POLICY_VIOLATION: Final = 1008
MESSAGE_TOO_BIG: Final = 1009


class JsonSocket:
    """One accepted connection. Reading raises `WebSocketDisconnect` when the client has gone."""

    def __init__(self, websocket: WebSocket, services: Services) -> None:
        self.request_id = request_id_of(websocket)
        self._websocket = websocket
        self._services = services
        self._line = asyncio.Lock()  # frames of several senders take turns

    @classmethod
    async def accept(cls, websocket: WebSocket, services: Services) -> "JsonSocket":
        """Answer the client's handshake."""
        offered: list[str] = websocket.scope.get("subprotocols", [])
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        return cls(websocket, services)

    async def authenticate(self) -> Caller:
        """Whose key or token the first frame brings. Raises `Unauthorized`."""
        try:
            async with asyncio.timeout(AUTH_SECONDS):
                values = object_in(await self._receive(AUTH_BYTES))
            frame = AuthFrame.model_validate(values)
        except (TimeoutError, InvalidRequest, ValidationError) as error:
            raise Unauthorized(KEY_SENTENCE) from error
        return await caller_with_key(self._services, frame.key)

    async def receive(self) -> str:
        """The next text frame. Raises `PayloadTooLarge` beyond the bounds of a request body."""
        return await self._receive(self._services.settings.max_body_bytes)

    async def _receive(self, max_bytes: int) -> str:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text: str | None = message.get("text")
        if text is None:
            return ""  # a binary frame is no JSON object
        if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
            raise PayloadTooLarge(f"The frame is larger than {max_bytes} bytes: send less at once.")
        return text

    async def send(self, kind: str, **fields: Any) -> None:
        """Send one frame."""
        async with self._line:
            await self._websocket.send_text(json.dumps({"type": kind, **fields}))

    async def send_error(self, error: MiniClaudeError, **fields: Any) -> None:
        """Send an error frame; `fields` say what it is about."""
        await self.send("error", **fields, **native_error(error, self.request_id))

    async def refuse(self, error: MiniClaudeError) -> None:
        """Say why and close."""
        code = MESSAGE_TOO_BIG if isinstance(error, PayloadTooLarge) else POLICY_VIOLATION
        await self._websocket.close(code, error.code)

    async def close(self) -> None:
        """Close in good order."""
        await self._websocket.close()


def object_in(text: str) -> dict[str, Any]:
    """The JSON object in a frame. Raises `InvalidRequest`."""
    check_depth(text.encode("utf-8", "surrogatepass"))
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(
            'A frame must be a JSON object with a "type", sent as text.', code="invalid_json"
        ) from error
    return values if isinstance(values, dict) else {}
