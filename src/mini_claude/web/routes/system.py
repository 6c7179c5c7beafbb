"""Health, metrics and the API's own description."""

from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final, Literal

from fastapi import APIRouter, Depends
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from mini_claude.services.health import check_health
from mini_claude.types import ModelState
from mini_claude.web.deps import ADMIN_ONLY, ADMIN_RESPONSES, ServicesDep, caller_of
from mini_claude.web.shutdown import Shutdown

OPENAPI_PATH: Final = "/openapi.json"
DOCS_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)

METRICS: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

public_router = APIRouter(tags=["system"])  # the reviewed list of what anybody may call: one route
router = APIRouter(tags=["system"], dependencies=[Depends(caller_of)])


class Alive(BaseModel):
    """This worker answers."""

    status: Literal["alive"] = "alive"


class Health(BaseModel):
    """Whether requests can be served now, part by part; a part that works says "ok"."""

    status: Literal["ready", "unavailable"]
    version: str
    server: Literal["ok", "shutting down"]
    database: str
    supervisor: str
    default_model: str
    default_model_state: ModelState | None


@public_router.get("/api/v1/health/live")
async def live() -> Alive:
    """Whether the process runs; asks nobody else."""
    return Alive()


@router.get("/api/v1/health", responses={503: {"model": Health}})
async def health(services: ServicesDep, request: Request) -> JSONResponse:
    """Whether requests can be served: 200 or 503, with the reason."""
    found = await check_health(services)
    shutdown: Shutdown = request.app.state.shutdown
    ready = found.ready and not shutdown.announced
    body = Health(
        status="ready" if ready else "unavailable",
        version=version("mini-claude"),
        server="shutting down" if shutdown.announced else "ok",
        database=found.database,
        supervisor=found.supervisor,
        default_model=found.default_model,
        default_model_state=found.default_model_state,
    )
    return JSONResponse(body.model_dump(), 200 if ready else 503)


@router.get("/api/v1/metrics", response_class=Response, dependencies=[ADMIN_ONLY], responses=METRICS | ADMIN_RESPONSES)
async def metrics(services: ServicesDep) -> Response:
    """Prometheus text of the whole product, whichever worker is asked. For admins."""
    return Response(await services.runtime.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get(OPENAPI_PATH, include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    """The description that the docs page shows."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """A page to try the API on."""
    page = get_swagger_ui_html(
        openapi_url=OPENAPI_PATH,
        title=request.app.title,
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
    )
    page.headers["content-security-policy"] = DOCS_POLICY
    return page


@router.get("/docs/{name}", include_in_schema=False)
async def docs_asset(name: Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"]) -> FileResponse:
    """The page's own files, out of an installed package: nothing is loaded from elsewhere."""
    return FileResponse(str(files("fastapi_offline") / "static" / name), headers={"cache-control": "no-cache"})
