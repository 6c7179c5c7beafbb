"""The application over real services, a database and the echo engine, called without a socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI
from pydantic import SecretStr
from sqlalchemy import text
from starlette.types import ASGIApp

from mini_claude.data.records import KeyRole
from mini_claude.models.catalog import BUILTIN
from mini_claude.services.services import Services, open_services
from mini_claude.utils.config import Settings
from mini_claude.web.api import create_app
from mini_claude.web.connections import HttpConnection, WebSocketConnection

from .echo_runtime import EchoRuntime

LOCAL = ("127.0.0.1", 1)
BASE = "http://127.0.0.1:8000"
PASSWORD = "correct horse battery staple"


@dataclass
class Site:
    """A running application and what is behind it."""

    app: FastAPI
    services: Services
    runtime: EchoRuntime

    def client(self, *, client: tuple[str, int] = LOCAL, base: str = BASE, **headers: str) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(self.app, client=client)
        return httpx2.AsyncClient(transport=transport, base_url=base, headers=headers)

    def openai(self, key: str = "unused") -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{BASE}/v1", api_key=key, http_client=self.client(), max_retries=0)

    async def key(self, role: KeyRole | None = None) -> str:
        return (await self.services.keys.create("test", role))[1]

    async def token(self, name: str, role: KeyRole = "user") -> str:
        """A new token of this user's, who is made where there is none."""
        if name not in {user.name for user in await self.services.users.list()}:
            await self.services.users.create(name, PASSWORD, role)
        user = await self.services.users.named(name)
        return self.services.logins._signer.make(user.id, user.generation)[1]

    def place(self, name: str) -> None:
        """Let the files of this built-in model be on the machine."""
        folder = self.services.settings.models_dir / name
        folder.mkdir(parents=True)
        source = next(spec.sources[0] for spec in BUILTIN if spec.name == name)
        (folder / "made_from.json").write_text(json.dumps(asdict(source)))

    async def end(self, key: str) -> None:
        """Let the key's time have come."""
        with self.services.database.write() as session:
            session.execute(text("UPDATE api_keys SET expires_at = 1.0 WHERE prefix = :prefix"), {"prefix": key[:9]})


OpenSite = Callable[..., Awaitable[Site]]
IN_MEMORY = "sqlite://"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that is marked for both databases, opens one and does not choose itself, runs on both."""
    marked = metafunc.definition.get_closest_marker("both_databases") is not None
    chosen = any(mark.args[0] == "database_url" for mark in metafunc.definition.iter_markers("parametrize"))
    if marked and "database_url" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """Where a site stores what it has to, unless its test says otherwise."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return IN_MEMORY
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def shared_database_url(database_url: str, tmp_path: Path) -> str:
    """The same, where other processes could see it, as jobs need it."""
    return f"sqlite:///{tmp_path / 'jobs.db'}" if database_url == IN_MEMORY else database_url


@pytest.fixture
async def open_site(tmp_path: Path, database_url: str) -> AsyncIterator[OpenSite]:
    """Opens an application with the given settings; its runtime may be given too."""
    async with AsyncExitStack() as stack:

        async def open_one(runtime: EchoRuntime | None = None, **changes: Any) -> Site:
            stored = SecretStr(database_url)
            settings = Settings(
                **{"engine": "echo", "preload": False, "database_url": stored, "data_dir": tmp_path, **changes}
            )
            own = runtime or EchoRuntime()
            services = await open_services(settings, own)
            stack.push_async_callback(services.aclose)

            @asynccontextmanager
            async def factory() -> AsyncIterator[Services]:
                yield services

            app = create_app(factory)
            await stack.enter_async_context(app.router.lifespan_context(app))
            return Site(app, services, own)

        yield open_one


@pytest.fixture
async def site(open_site: OpenSite) -> Site:
    return await open_site()


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx2.AsyncClient]:
    async with site.client() as client:
        yield client


@asynccontextmanager
async def listening(
    app: ASGIApp, max_connections: int = 2000, shutdown_seconds: int = 2
) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """An application behind a real socket on this machine, as `mini-claude serve` does it; yields "host:port" too."""
    config = uvicorn.Config(
        app,
        port=0,
        lifespan="off",
        log_config=None,
        http=HttpConnection,
        ws=WebSocketConnection,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    socket.listen()  # from here on clients can connect; uvicorn takes them when it has started
    task = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        yield f"127.0.0.1:{socket.getsockname()[1]}", server
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def served(site: Site, shutdown_seconds: int = 2) -> AsyncIterator[str]:
    """The site behind a real socket; yields "host:port"."""
    max_connections = site.services.settings.max_connections
    async with listening(site.app, max_connections, shutdown_seconds) as (address, _):
        yield address


def short_processes() -> list[psutil.Process]:
    """Those that work for this one now (runtime/short_process.py)."""
    return [child for child in psutil.Process().children(recursive=True) if _works_shortly(child)]


def _works_shortly(child: psutil.Process) -> bool:
    try:
        return child.is_running() and "short_process" in " ".join(child.cmdline())
    except psutil.NoSuchProcess:  # it has ended in between, though perhaps nobody has asked for its exit code yet
        return False


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something that happens on the other side of a socket."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
