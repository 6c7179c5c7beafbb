"""Workers: services over a fake runtime and one database file, as in one data directory."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mini_claude.data.records import Limits
from mini_claude.runtime.messages import ReplyEvent
from mini_claude.services.chat import ChatService
from mini_claude.services.identity import LOCAL, Caller
from mini_claude.services.limits import LimitService
from mini_claude.services.services import Services, open_services
from mini_claude.services.session_reply import SessionReply
from mini_claude.services.session_turn import SessionTurn
from mini_claude.types import SamplingParams
from mini_claude.utils.config import Settings

from .fakes import FakeEngine, FakeRuntime

ALICE = Caller("a" * 32, "a" * 32)
BOB = Caller("b" * 32, "b" * 32)


@dataclass
class Worker:
    """One API worker as far as services go."""

    services: Services
    runtime: FakeRuntime

    @property
    def chat(self) -> ChatService:
        return self.services.chat


def limited(digit: str = "c", **limits: int) -> Caller:
    """The owner of a key with these limits."""
    return Caller(digit * 32, digit * 32, limits=Limits(**limits))


async def left(service: LimitService, caller: Caller) -> dict[str, int]:
    """What is left of each limit."""
    return {state.name: state.remaining for state in await service.states(caller)}


OpenWorker = Callable[[], Awaitable[Worker]]


def says(content: str | None, session_id: str | None = None, **rest: object) -> SessionTurn:
    return SessionTurn(session_id, content, SamplingParams(), **rest)  # type: ignore[arg-type]


async def texts(reply: AsyncIterable[ReplyEvent]) -> list[str]:
    """Texts of all events until the end."""
    return [event.delta.text async for event in reply]


async def talk(worker: Worker, content: str | None, session_id: str | None = None, **rest: object) -> SessionReply:
    """Say something and read the reply to its end."""
    reply = await worker.chat.say(LOCAL, says(content, session_id, **rest))
    await texts(reply)
    return reply


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    return Settings(data_dir=tmp_path / "data", engine="echo", database_url=url)


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def open_worker(settings: Settings, engine: FakeEngine) -> AsyncIterator[OpenWorker]:
    async with AsyncExitStack() as stack:

        async def open_one() -> Worker:
            runtime = FakeRuntime(engine)
            services = await open_services(settings, runtime)
            stack.push_async_callback(services.aclose)
            return Worker(services, runtime)

        yield open_one


@pytest.fixture
async def worker(open_worker: OpenWorker) -> Worker:
    return await open_worker()
