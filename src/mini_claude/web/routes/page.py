"""The web page's addresses: who may see it, a form for a password or a key, and the way to the process that makes it.

Only what the page needs is let through; Gradio answers at many more addresses.
"""

import re
from importlib.resources import files
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mini_claude.errors import MiniClaudeError, NotFound, RateLimited, Unauthorized, Unavailable
from mini_claude.services.identity import Caller
from mini_claude.web.deps import ServicesDep, address_of, caller_with_key, key_in_headers, local_caller
from mini_claude.web.page_line import SECURITY_HEADERS, PageLine

COOKIE: Final = "mini_claude_key"
COOKIE_SECONDS: Final = 30 * 86_400
MAX_FORM_BYTES: Final = 4096
GRADIO_PATHS: Final = re.compile(
    r"queue/(join|data)|upload(_progress)?|file=.+|cancel|reset/?|heartbeat/\w+|startup-events|component_server|info"
)
_NAME: Final = r"[\w./@-]+"


async def page_caller(connection: HTTPConnection, services: ServicesDep) -> Caller:
    """Who looks at the page: on a server with keys or users the owner of what is in the cookie, else the local user.

    The cookie counts at the page's addresses only, and browsers send it from the page alone (SameSite=Strict).
    """
    if await services.credentials.needed():
        return await caller_with_key(services, connection.cookies.get(COOKIE) or key_in_headers(connection))
    return local_caller(connection, services)


PageCaller = Annotated[Caller, Depends(page_caller)]


def line_of(connection: HTTPConnection) -> PageLine:
    """The line that the lifespan opened. Raises `NotFound` where there is no page."""
    line: PageLine | None = connection.app.state.page_line
    if line is None:
        raise NotFound(
            "This server has no page (page = false, or a database in memory); /docs describes its API.",
            code="no_page",
        )
    return line


async def _line(connection: HTTPConnection) -> PageLine:
    return line_of(connection)  # FastAPI asks what is not async in a thread


LineDep = Annotated[PageLine, Depends(_line)]
router = APIRouter(include_in_schema=False)
public_router = APIRouter(include_in_schema=False)


_REFUSED: Final = '<p role="alert">This key is not known here, or it has ended: look whether it is whole.</p>'
_OUTCOMES: Final = {Unauthorized: 401, RateLimited: 429}  # of a name and a password


def _document(name: str, status: int, fill: str = "", **headers: str) -> HTMLResponse:
    text = files("mini_claude.web.page").joinpath(name).read_text().replace("<!--fill-->", fill)
    return HTMLResponse(text, status, {**SECURITY_HEADERS, "cache-control": "no-store", **headers})


@public_router.get("/")
async def page(request: Request, services: ServicesDep) -> Response:
    """The page, the form to sign in, or a document that tries again while the page's process starts."""
    try:
        caller = await page_caller(request, services)
    except Unauthorized:
        if not await services.credentials.needed():
            raise
        return _document("login.html", 401)
    try:
        return await line_of(request).forward(request, caller)
    except Unavailable:
        return _document("starting.html", 503, **{"retry-after": "2"})


@public_router.post("/login")
async def login(request: Request, services: ServicesDep) -> Response:
    """Take a key from the form, or the token for a name and a password, into a cookie that scripts cannot read."""
    if not await services.credentials.needed():
        local_caller(request, services)
        return RedirectResponse("/", 303)
    body = (await request.body())[:MAX_FORM_BYTES]
    form = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
    if "name" in form:
        try:
            made = await services.logins.login(form["name"], form.get("password", ""), address_of(request))
        except (Unauthorized, RateLimited) as error:
            return _document("login.html", _OUTCOMES[type(error)], fill=f'<p role="alert">{error.message}</p>')
        return _entered(request, made.text, services.settings.token_seconds)
    key = form.get("key", "").strip()
    try:
        await caller_with_key(services, key)
    except MiniClaudeError:
        return _document("login.html", 401, fill=_REFUSED)
    return _entered(request, key, COOKIE_SECONDS)


def _entered(request: Request, key: str, seconds: float) -> Response:
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, key, int(seconds), httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/logout")
async def logout(caller: PageCaller, services: ServicesDep) -> Response:
    """Forget the key, and refuse the token, which somebody may have copied."""
    if caller.token is not None:
        await services.logins.logout(caller.token)
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE)
    return answer


@router.api_route("/gradio_api/{path:path}", methods=["GET", "POST"])
async def gradio(path: str, request: Request, caller: PageCaller, line: LineDep) -> Response:
    """Events and files of the page."""
    if GRADIO_PATHS.fullmatch(path) is None:
        raise NotFound("There is no such address.", code="not_found")
    return await line.forward(request, caller)


@router.get("/assets/{path:path}")
@router.get("/static/{path:path}")
async def asset(path: str, request: Request, caller: PageCaller, line: LineDep) -> Response:
    """Scripts, styles and fonts."""
    if re.fullmatch(_NAME, path) is None:
        raise NotFound("There is no such address.", code="not_found")
    return await line.forward(request, caller)


@router.get("/config")
@router.get("/theme.css")
@router.get("/favicon.ico")
@router.get("/manifest.json")
async def document(request: Request, caller: PageCaller, line: LineDep) -> Response:
    """What the page asks for by itself."""
    return await line.forward(request, caller)
