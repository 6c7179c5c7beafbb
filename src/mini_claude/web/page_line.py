"""A worker's line to the page's process: HTTP over a Unix socket that only this user can open.

What passes is the page's own traffic. Who is calling, as what and within which limits, was found out by the worker
and is told in headers; the same headers from outside are thrown away.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Final

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mini_claude.errors import PayloadTooLarge, Unavailable
from mini_claude.services.identity import Caller
from mini_claude.web.shutdown import Shutdown
from mini_claude.web.streaming import cancel_all, hung_up
from mini_claude.web.upload import paced

OWNER_HEADER: Final = "x-mini-claude-owner"
KEY_HEADER: Final = "x-mini-claude-key-id"
ROLE_HEADER: Final = "x-mini-claude-role"
LIMITS_HEADER: Final = "x-mini-claude-limits"
CONNECT_SECONDS: Final = 5.0
MAX_CONNECTIONS: Final = 1000
# Of one connection (RFC 9110, section 7.6.1), or ours to say.
NOT_FORWARDED: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade"),
        *("transfer-encoding", "content-length", "authorization", "x-api-key", "cookie"),
        *(OWNER_HEADER, KEY_HEADER, ROLE_HEADER, LIMITS_HEADER),
        *("x-forwarded-host", "x-forwarded-proto", "x-forwarded-for", "forwarded"),
    }
)
# Gradio's page starts inline scripts and compiles templates. Nothing may come from, or go to, anywhere else.
SECURITY_HEADERS: Final = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none at all the form for a key would be sent without its origin
}


def starting() -> Unavailable:
    """The error while the page's process does not answer."""
    return Unavailable("The page is starting: try again in a few seconds.", code="page_starting", retry_after=2.0)


class PageLine:
    """Forwards requests. Belongs to one event loop."""

    def __init__(self, socket: Path, max_upload_bytes: int, shutdown: Shutdown) -> None:
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket), limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=20)
            ),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
        )
        self._max_upload_bytes = max_upload_bytes
        self._shutdown = shutdown

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def forward(self, request: Request, caller: Caller) -> Response:
        """The page's answer, passed on while it comes. Raises `Unavailable` and `PayloadTooLarge`."""
        headers = [(name, value) for name, value in request.headers.items() if name not in NOT_FORWARDED]
        headers += [(OWNER_HEADER, caller.owner), (ROLE_HEADER, caller.role), ("x-forwarded-proto", request.url.scheme)]
        headers.append((LIMITS_HEADER, json.dumps(asdict(caller.limits))))
        if caller.key_id is not None:
            headers.append((KEY_HEADER, caller.key_id))
        outgoing = self._http.build_request(
            request.method,
            httpx.URL(
                scheme="http",
                host="page",
                path=request.url.path,
                query=request.url.query.encode(),
            ),
            headers=headers,
            content=self._body(request) if request.method == "POST" else None,
        )
        try:
            incoming = await self._http.send(outgoing, stream=True)
        except httpx.ConnectError as error:
            raise starting() from error
        except httpx.TransportError as error:
            raise Unavailable("The page's process ended: it is being started again.", retry_after=5.0) from error
        return PassedOn(incoming, self._shutdown)

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        num_bytes = 0
        async with aclosing(paced(request.stream())) as body:
            async for chunk in body:
                num_bytes += len(chunk)
                if num_bytes > self._max_upload_bytes:
                    most = f"{self._max_upload_bytes} bytes (max_dataset_bytes)"
                    raise PayloadTooLarge(f"The upload is larger than {most}: make it smaller.")
                yield chunk


class PassedOn(Response):
    """The page's answer, written to the browser as it comes.

    Ends with it, with the browser, or when this worker has to: a page's line for news has no end of its own.
    """

    def __init__(self, incoming: httpx.Response, shutdown: Shutdown) -> None:
        self.status_code = incoming.status_code
        self.background = None
        self._incoming = incoming
        self._shutdown = shutdown
        self.raw_headers = [
            (name.lower(), value)
            for name, value in incoming.headers.raw
            if name.lower().decode("latin-1") not in NOT_FORWARDED - {"content-length"}
        ]
        self.headers.update(SECURITY_HEADERS)
        self.headers.setdefault("cache-control", "no-cache")  # files may be kept, and are asked about each time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the browser stays for. Raises `ClientDisconnect`."""
        del scope
        tasks: list[asyncio.Task[None]] = []
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            write = asyncio.create_task(self._write(send))
            ending = asyncio.create_task(self._shutdown.wait())
            tasks = [write, ending, asyncio.create_task(hung_up(receive))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if write.done():
                write.result()
            elif ending.done():
                await cancel_all(tasks)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except httpx.TransportError as error:
            raise ClientDisconnect from error  # the browser sees a line that broke, and comes again
        finally:
            await cancel_all(tasks)
            await self._incoming.aclose()

    async def _write(self, send: Send) -> None:
        async for chunk in self._incoming.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
