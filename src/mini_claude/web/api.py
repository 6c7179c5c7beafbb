"""The web application: `create_app` puts the parts together, `app` is what uvicorn serves.

Importing this file starts nothing. The services are opened by each worker's lifespan, and no worker ever imports
torch or transformers: models live in processes of their own.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI

from mini_claude.errors import MiniClaudeError
from mini_claude.runtime.client import RuntimeClient
from mini_claude.runtime.liveness import terminate_with_multiprocessing_parent
from mini_claude.runtime.sockets import page_socket
from mini_claude.services.services import Services, open_services
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import configure_logging, get_logger
from mini_claude.web.access import AccessMiddleware
from mini_claude.web.api_description import DescribedApp
from mini_claude.web.connections import allow_open_files
from mini_claude.web.error_handlers import add_error_handlers
from mini_claude.web.page_line import PageLine
from mini_claude.web.routes import (
    adapters,
    auth,
    chat,
    chat_socket,
    datasets,
    feedback,
    keys,
    models,
    openai,
    page,
    system,
    training,
    training_socket,
    users,
    xray,
)
from mini_claude.web.shutdown import Shutdown

log = get_logger(__name__)

ServicesFactory = Callable[[], AbstractAsyncContextManager[Services]]

ROUTERS: Final = (
    openai.router,  # first: routes are looked through in order, and this one is asked most
    system.public_router,
    system.router,
    auth.public_router,
    auth.router,
    keys.me_router,
    keys.router,
    users.router,
    chat.router,
    chat_socket.router,
    feedback.router,
    feedback.preferences_router,
    feedback.datasets_router,
    adapters.router,  # before the models, of which one could be called "adapters"
    models.router,
    models.default_router,
    datasets.router,
    training.router,
    training_socket.router,
    xray.router,
    page.public_router,
    page.router,
)


@asynccontextmanager
async def services_from_settings() -> AsyncIterator[Services]:
    """The services of a real worker: settings from the environment, the supervisor of the data directory."""
    settings = Settings()
    configure_logging(settings, "api")
    allow_open_files(settings.max_connections)
    terminate_with_multiprocessing_parent()
    runtime = await RuntimeClient.connect(settings)
    try:
        services = await open_services(settings, runtime)
        try:
            yield services
        finally:
            await services.aclose()
    finally:
        await runtime.aclose()


async def _preload(services: Services) -> None:
    """Load the default model before somebody waits for it. Workers that race here load it once."""
    try:
        await services.models.load(None)
    except MiniClaudeError as error:
        log.warning("preload_failed", model=services.settings.default_model, code=error.code, error=error.message)


@asynccontextmanager
async def _page_line(settings: Settings, shutdown: Shutdown) -> AsyncIterator[PageLine | None]:
    """The line to the page's process, None where there is no page."""
    if not settings.serves_page:
        yield None
        return
    line = PageLine(page_socket(settings.data_dir), settings.max_dataset_bytes, shutdown)
    try:
        yield line
    finally:
        await line.aclose()


def create_app(services_factory: ServicesFactory = services_from_settings) -> FastAPI:
    """The application. Tests pass a factory with services of their own."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with services_factory() as services:
            app.state.services = services
            app.state.shutdown = shutdown = Shutdown(services.settings.drain_seconds)
            shutdown.listen()
            preload = asyncio.create_task(_preload(services)) if services.settings.preload else None
            async with _page_line(services.settings, shutdown) as app.state.page_line:
                yield
            shutdown.close()
            if preload is not None:
                preload.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await preload

    app = DescribedApp(
        title="Mini-Claude",
        version=version("mini-claude"),
        lifespan=lifespan,
        # FastAPI can export requests and validation errors with their values: nothing here leaves the machine.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
        redirect_slashes=False,
        # The docs routes of system.py stand in for FastAPI's own, which would not ask for a key.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_middleware(AccessMiddleware)
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


app = create_app()
