"""A real server with the echo engine, in a thread of its own, so that commands meet it as they do in life."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from mini_claude.services.services import Services, open_services
from mini_claude.utils.config import Settings
from mini_claude.web.api import create_app

from ..web.conftest import Site, served
from ..web.echo_runtime import EchoRuntime

CONTEXT_LENGTH = 800  # tokens, which are bytes here: 512 of them are kept free for the reply


@dataclass
class RunningSite:
    """The server as this thread sees it: `settings` are those of a terminal command that talks to it."""

    settings: Settings
    runtime: EchoRuntime
    loop: asyncio.AbstractEventLoop
    services: Services

    def open_valve(self) -> None:
        """Let a reply that `runtime.pause_after` holds up go on."""
        self.loop.call_soon_threadsafe(self.runtime.valve.set)

    def new_key(self) -> str:
        return asyncio.run_coroutine_threadsafe(self.services.keys.create("test"), self.loop).result()[1]


async def _serve(data_dir: Path, started: "Future[tuple[RunningSite, asyncio.Event]]") -> None:
    settings = Settings(engine="echo", preload=False, database_url=SecretStr("sqlite://"), data_dir=data_dir)
    runtime = EchoRuntime(context_length=CONTEXT_LENGTH)
    services = await open_services(settings, runtime)

    @asynccontextmanager
    async def factory() -> AsyncIterator[Services]:
        yield services

    app = create_app(factory)
    stop = asyncio.Event()
    async with app.router.lifespan_context(app), served(Site(app, services, runtime)) as address:
        own = settings.model_copy(update={"port": int(address.rpartition(":")[2])})
        started.set_result((RunningSite(own, runtime, asyncio.get_running_loop(), services), stop))
        await stop.wait()
    await services.aclose()


@pytest.fixture(autouse=True)
def _plain_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colours and no widths of the terminal, or the build service, in which the tests run."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RunningSite]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # not between the output of commands
    started: Future[tuple[RunningSite, asyncio.Event]] = Future()

    def work() -> None:
        try:
            asyncio.run(_serve(tmp_path / "server", started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=work, name="site")
    thread.start()
    running, stop = started.result()
    yield running
    running.open_valve()
    running.loop.call_soon_threadsafe(stop.set)
    thread.join()
    structlog.reset_defaults()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody answers, and which nobody else can take meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


SetEnvironment = Callable[..., None]


@pytest.fixture
def set_environment(monkeypatch: pytest.MonkeyPatch) -> SetEnvironment:
    """Give the settings of commands that run in this process."""

    def set_variables(**settings: object) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"MINI_CLAUDE_{name.upper()}", str(value))

    for name in [name for name in os.environ if name.startswith("MINI_CLAUDE_")]:
        monkeypatch.delenv(name)
    return set_variables


@pytest.fixture
def data_dir(tmp_path: Path, set_environment: SetEnvironment, closed_port: int) -> Path:
    """The data directory of commands that find no server."""
    set_environment(data_dir=tmp_path / "data", port=closed_port, engine="echo")
    return tmp_path / "data"
