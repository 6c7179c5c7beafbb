"""The application behind a real socket in a thread of its own, over a file database and the echo engine."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mini_claude.data.adapters import AdapterRepository
from mini_claude.services.services import Services, open_services
from mini_claude.utils.config import Settings
from mini_claude.web.api import create_app

from ..web.conftest import listening
from ..web.echo_runtime import EchoRuntime


@dataclass
class Live:
    """A server; `http` is an admin's client, `known` are ids of that admin's things by the names of path parameters."""

    url: str
    key: str
    services: Services
    http: httpx.Client
    known: dict[str, str]


@contextmanager
def live_server(data_dir: Path) -> Iterator[Live]:
    """Start one and end it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    ending = asyncio.Event()
    started: asyncio.Future[tuple[str, str, Services]] = loop.create_future()

    async def serve() -> None:
        settings = Settings(engine="echo", preload=False, page=False, data_dir=data_dir)
        services = await open_services(settings, EchoRuntime())

        @asynccontextmanager
        async def factory() -> Any:
            yield services

        try:
            key = (await services.keys.create("torture", "admin"))[1]
            app = create_app(factory)
            async with app.router.lifespan_context(app), listening(app) as (address, _):
                started.set_result((f"http://{address}", key, services))
                await ending.wait()
        finally:
            await services.aclose()

    async def wait_for_start() -> tuple[str, str, Services]:
        return await started

    running = asyncio.run_coroutine_threadsafe(serve(), loop)
    try:
        url, key, services = asyncio.run_coroutine_threadsafe(wait_for_start(), loop).result(30)
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
            yield Live(url, key, services, http, _make_things(http, services))
    finally:
        loop.call_soon_threadsafe(ending.set)
        running.result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _make_things(http: httpx.Client, services: Services) -> dict[str, str]:
    words = [{"role": "user", "content": "Hello"}]
    answers = {side: {"model": "m", "text": side, "cut": False} for side in ("chosen", "rejected")}
    said = http.post("/api/v1/chat/completions", json={"session_id": "new", "messages": words})
    preference = http.post("/api/v1/preferences", json={"messages": words, "blind": True, **answers})
    file = ("rows.jsonl", b'["Hi", "Yo"]\n["What?", "That."]\n')
    dataset = http.post("/api/v1/datasets", files={"file": file}, data={"name": "rows"})
    job = http.post("/api/v1/training/jobs", json={"dataset_path": "rows"})
    for answer in (said, preference, dataset, job):
        assert answer.is_success, answer.text
    me = http.get("/api/v1/me").json()["key_id"]
    (services.settings.adapters_dir / "folder").mkdir(parents=True)
    adapter = AdapterRepository(services.database).add(me, "smollm2-135m", "bot", "folder", {}, None)
    return {
        "session_id": said.json()["session_id"],
        "reply_id": said.json()["reply_id"],
        "preference_id": preference.json()["id"],
        "job_id": job.json()["id"],
        "reference": adapter.reference,
        "model": "smollm2-135m",
    }
