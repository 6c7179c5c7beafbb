"""A server that is used for long, with the real model: none of its processes grows. A leak made on purpose is found."""

import asyncio
import itertools
import time
from pathlib import Path
from statistics import median

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect

from ..end_to_end.conftest import Server, serving, serving_model
from .sizes import FULL_SECONDS, REDUCED, Sizes, at_both_sizes

pytestmark = [pytest.mark.alone, pytest.mark.timeout(FULL_SECONDS)]

MAX_GROWTH = 0.05
NUM_CLIENTS = 4
NUM_SAMPLES = 20  # of which the first quarter, and the last, are compared
MIN_WARM_UP = 100  # rounds: each leaves some 40 tokens, of which the engine keeps 2,730 (`MAX_IDLE_SHARE`) and no more


async def use(server: Server, http: httpx.AsyncClient, number: int) -> None:
    """One round of what people do: talk, go away in mid-sentence, come back, ask nonsense, tidy up."""
    question = [{"role": "user", "content": f"Say something about the number {number}."}]
    reply = await http.post(
        "/api/v1/chat/completions", json={"session_id": "new", "messages": question, "max_tokens": 6}
    )
    assert reply.status_code == 200, reply.text
    session = f"/api/v1/chat/sessions/{reply.json()['session_id']}"
    assert (await http.get(session)).status_code == 200
    body = {"model": "default", "messages": question, "max_tokens": 200, "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                break  # and the connection is closed
    async with connect(server.url.replace("http", "ws", 1) + "/ws/chat", proxy=None) as socket:
        await socket.send('{"type": "chat", "message": "Hello!", "max_tokens": 6}')
        while '"type":"end"' not in str(await socket.recv()).replace(" ", ""):
            pass
    assert (await http.post("/v1/chat/completions", json={"messages": "nonsense"})).status_code == 400
    assert (await http.get(f"/api/v1/nothing/{number}")).status_code == 404
    assert (await http.get("/api/v1/metrics")).status_code == 200
    assert (await http.delete(session)).status_code in {200, 204}


def memory(server: Server) -> dict[str, int]:
    """Resident bytes of each process, by what it is."""
    return {" ".join(process.cmdline()[1:4]): process.memory_info().rss for process in server.processes()}


async def growth(server: Server, sizes: Sizes) -> dict[str, float]:
    """How much larger each process is towards the end than after warming up, in parts of what it was."""
    numbers = itertools.count()
    samples: list[dict[str, int]] = []
    done = 0

    async def client(until: float, at_least: int) -> None:
        nonlocal done
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
            while done < at_least or time.monotonic() < until:
                await use(server, http, next(numbers))
                done += 1

    async def everybody(seconds: float, rounds: int) -> None:
        ends, at_least = time.monotonic() + seconds, done + rounds
        await asyncio.gather(*(client(ends, at_least) for _ in range(NUM_CLIENTS)))

    await everybody(sizes.soak_seconds / 10, max(MIN_WARM_UP, sizes.soak_rounds // 2))
    for _ in range(NUM_SAMPLES):
        await everybody(sizes.soak_seconds / NUM_SAMPLES, sizes.soak_rounds // NUM_SAMPLES)
        samples.append(memory(server))
    first, last = samples[: NUM_SAMPLES // 4], samples[-NUM_SAMPLES // 4 :]
    assert all(sample.keys() == samples[0].keys() for sample in samples), "a process ended"
    return {
        name: median(sample[name] for sample in last) / median(sample[name] for sample in first) - 1
        for name in samples[0]
    }


@at_both_sizes
async def test_no_process_grows(tmp_path: Path, smollm2_folder: Path, sizes: Sizes) -> None:
    with serving_model(tmp_path / "data", smollm2_folder) as server:
        grown = await growth(server, sizes)
    assert len(grown) == 3, "worker, supervisor and engine"
    assert max(grown.values()) < MAX_GROWTH, grown


async def test_a_leak_is_found(tmp_path: Path) -> None:
    with serving(
        tmp_path / "data", "tests.torture.leaking_server", "serve", "--port", "{port}", engine="echo"
    ) as server:
        worker = " ".join(psutil.Process(server.process.pid).cmdline()[1:4])
        grown = await growth(server, REDUCED)
    assert grown[worker] > MAX_GROWTH, grown
