"""Many clients that mean no good, or too much of it, at a whole server: others do not notice.

The clients run in this process and the server in its own, so that what is measured is the server.
"""

import asyncio
import json
import random
import string
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import quote

import httpx
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect

from ..end_to_end.conftest import Server, serving, until
from .sizes import Sizes, at_both_sizes

pytestmark = pytest.mark.alone

MODEL = "smollm2-135m"
HEALTH = "/api/v1/health"
MAX_HEALTH_SECONDS = 0.25
NUM_LOOKS = 100
HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-padding: {'x' * 500}\r\ncontent-length: 1000\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("crowds") / "data", engine="echo") as server:
        until(lambda: server.http.get(HEALTH).status_code == 200, 60, "the model is not ready")
        yield server


async def p99_of_health(server: Server, pause: float) -> float:
    """Seconds that all but the slowest one in a hundred looks at the server's health took."""
    seconds = []
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http:
        for _ in range(NUM_LOOKS):
            started = time.perf_counter()
            assert (await http.get(HEALTH)).status_code == 200
            seconds.append(time.perf_counter() - started)
            await asyncio.sleep(pause)
    return sorted(seconds)[NUM_LOOKS - 2]


async def drip(server: Server, begin_at: int) -> None:
    """Say a byte a second, of the head or of the body, and come again whenever the server ends it."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    while True:
        with suppress(ConnectionError):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(HEAD[:begin_at].encode())
                for character in HEAD[begin_at:] + " " * 1000:
                    if reader.at_eof():
                        break
                    writer.write(character.encode())
                    await asyncio.sleep(1)
            finally:
                writer.close()


@asynccontextmanager
async def running(tasks: list["asyncio.Task[None]"]) -> AsyncIterator[None]:
    """Cancel them after the block; none may have ended by itself."""
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@at_both_sizes
async def test_sockets_that_say_a_byte_a_second_slow_nobody_down(server: Server, sizes: Sizes) -> None:
    worker = psutil.Process(server.pids("worker")[0])
    before = worker.memory_info().rss
    begins = [0, 40, len(HEAD)]
    tasks = [asyncio.create_task(drip(server, begins[number % 3])) for number in range(sizes.slow_sockets)]
    async with running(tasks):
        await eventually(lambda: num_connections(worker) >= sizes.slow_sockets)
        assert await p99_of_health(server, 0.05) < MAX_HEALTH_SECONDS
        assert worker.memory_info().rss - before < 20e6 + 100e3 * sizes.slow_sockets
    await eventually(lambda: num_connections(worker) < 5)


def num_connections(worker: psutil.Process) -> int:
    return sum(each.status == "ESTABLISHED" and bool(each.raddr) for each in worker.net_connections("tcp"))


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that the server does."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.05)


@at_both_sizes
async def test_web_sockets_all_get_their_answers_and_go(server: Server, sizes: Sizes) -> None:
    worker = psutil.Process(server.pids("worker")[0])
    before = worker.memory_info().rss
    url = f"ws{server.url.removeprefix('http')}/ws/chat"
    async with AsyncExitStack() as stack:
        sockets: list[ClientConnection] = []
        for _ in range(sizes.web_sockets):
            sockets.append(await stack.enter_async_context(connect(url, compression=None, ping_interval=None)))
        assert await p99_of_health(server, 0) < MAX_HEALTH_SECONDS
        replies = [await say(socket, f"hello {number}") for number, socket in enumerate(sockets)]
        assert replies == [f"hello {number}" for number in range(sizes.web_sockets)]
        assert worker.memory_info().rss - before < 20e6 + 200e3 * sizes.web_sockets
    await eventually(lambda: num_connections(worker) < 5)


async def say(socket: ClientConnection, text: str) -> str:
    """What the echo engine answers."""
    await socket.send(json.dumps({"type": "chat", "message": text, "max_tokens": 64}))
    said = ""
    async with asyncio.timeout(30):
        while (frame := json.loads(await socket.recv()))["type"] != "end":
            assert frame["type"] in ("ready", "start", "delta"), frame
            said += frame.get("text", "")
    return said


@at_both_sizes
async def test_random_paths_leave_no_series_in_the_metrics(server: Server, sizes: Sizes) -> None:
    def series() -> set[str]:
        lines = server.http.get("/api/v1/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if "requests" in line and not line.startswith("#")}

    chosen = random.Random(0)
    letters = string.ascii_letters + string.digits + "/%.-_~é\U0001f600 "
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http:

        async def look(number: int) -> None:
            path = quote("".join(chosen.choices(letters, k=chosen.randint(1, 60))))
            method = "GET" if number % 2 else "".join(chosen.choices(string.ascii_uppercase, k=4))
            assert (await http.request(method, f"/{path}")).status_code < 500

        await asyncio.gather(*(look(number) for number in range(20)))
        before = series()
        for _ in range(sizes.random_paths // 20):
            await asyncio.gather(*(look(number) for number in range(20)))
    assert series() == before
