"""A supervisor and echo engines in real processes, in a data directory of the test's own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import psutil
import pytest
import uvloop

from mini_claude.runtime.client import RuntimeClient
from mini_claude.runtime.messages import StartChat
from mini_claude.types import Message, ModelSpec, SamplingParams
from mini_claude.utils.config import Settings

ECHO = ModelSpec("echo", "causal_lm", ())
PATIENCE_SECONDS = 20.0
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loops that a test runs on: the product runs on uvloop, its connections on any."""
    if item.path.name == "test_connection.py":
        return LOOPS
    name = "uvloop" if item.path.name == "test_client.py" else "asyncio"
    return {name: LOOPS[name]}


def chat(request_id: str, text: str = "hello", *, max_tokens: int | None = None, resumable: bool = False) -> StartChat:
    """An echo request; with max_tokens it goes on until then."""
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=max_tokens is not None)
    return StartChat(request_id, (Message("user", text),), params, resumable=resumable)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes do; fails after PATIENCE_SECONDS."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    """No such process, or only its zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def engine_pid(runtime: RuntimeClient) -> int:
    """Process id of the echo engine."""
    info = await runtime.load(ECHO, Settings(engine="echo").load_options())
    assert info.pid is not None
    return info.pid


async def supervisor_pid(runtime: RuntimeClient) -> int:
    """Process id of the supervisor."""
    status = await runtime.status()
    return next(process.pid for process in status.processes if process.role == "supervisor")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, engine="echo", resume_seconds=30.0, shutdown_seconds=5.0)


@pytest.fixture
async def runtime(settings: Settings) -> AsyncIterator[RuntimeClient]:
    client = await RuntimeClient.connect(settings)
    pid = await supervisor_pid(client)
    yield client
    await client.shutdown_supervisor()
    await client.aclose()
    await eventually(lambda: gone(pid))
