"""The page's process: services of its own over the same data, Gradio on a Unix socket for the API workers."""

import asyncio
import os
import shutil
import signal
import sys
from contextlib import suppress

import gradio as gr
import msgspec
import uvicorn
from fastapi import FastAPI

from mini_claude.runtime import sockets
from mini_claude.runtime.client import RuntimeClient
from mini_claude.runtime.launches import PageLaunch
from mini_claude.runtime.liveness import end_with_parent
from mini_claude.services.services import Services, open_services
from mini_claude.utils.config import Settings
from mini_claude.utils.logging import configure_logging, get_logger
from mini_claude.utils.waiting_server import WaitingServer
from mini_claude.web.page.layout import build_page
from mini_claude.web.page.open_pages import OpenPages
from mini_claude.web.page.theme import CSS, HEAD, page_theme

log = get_logger(__name__)

GRACE_SECONDS = 1  # for events under way; replies and jobs go on without us


def create_page_app(services: Services) -> FastAPI:
    """The ASGI application that the workers forward to."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = build_page(services)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=services.settings.max_dataset_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page_theme(),
        css=CSS,
        head=HEAD,
    )
    mounted.add_middleware(OpenPages, queue=page._queue)
    return mounted


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM."""
    runtime = await RuntimeClient.connect(settings, "page")
    try:
        services = await open_services(settings, runtime)
        try:
            socket = sockets.page_socket(settings.data_dir)
            config = uvicorn.Config(
                create_page_app(services),
                uds=str(socket),
                log_config=None,
                access_log=False,
                date_header=False,  # the worker that passes answers on has its own
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
            log.info("page.ready", pid=os.getpid())
            with suppress(KeyboardInterrupt):
                await WaitingServer(config).serve()
        finally:
            await services.aclose()
    finally:
        await runtime.aclose()


def main() -> None:
    """Entry point of the process: a `PageLaunch` as one line of JSON on standard input."""
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=PageLaunch)
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    secret = {"database_url": launch.database_url, "limits_url": launch.limits_url}
    settings = Settings.model_validate(launch.settings | secret)
    configure_logging(settings, "page")
    shutil.rmtree(settings.page_files_dir, ignore_errors=True)  # of a page that was killed
    settings.page_files_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
