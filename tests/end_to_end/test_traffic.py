"""A thousand requests of mixed kinds through four workers: no 5xx, and no turn of any session is lost."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import websockets

from .conftest import serving

pytestmark = pytest.mark.alone

NUM_REQUESTS = 1000
NUM_SESSIONS = 20


class Traffic:
    """Sends requests and remembers the status of each, and what every session must hold in the end."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self.http = http
        self.url = url
        self.statuses: Counter[int] = Counter()
        self.sessions: dict[str, list[str]] = {}

    async def post(self, path: str, body: dict[str, object]) -> httpx.Response:
        response = await self.http.post(path, json=body)
        self.statuses[response.status_code] += 1
        return response

    async def open_sessions(self) -> None:
        for _ in range(NUM_SESSIONS):
            body = {"session_id": "new", "messages": [{"role": "user", "content": "first"}], "max_tokens": 8}
            session_id = (await self.post("/api/v1/chat/completions", body)).json()["session_id"]
            self.sessions[session_id] = ["first"]

    async def session_turn(self, number: int) -> None:
        session_id = list(self.sessions)[number % NUM_SESSIONS]
        content = f"turn {number}"
        body = {"session_id": session_id, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        response = await self.post("/api/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        self.sessions[session_id].append(content)

    async def openai(self, number: int) -> None:
        messages = [{"role": "user", "content": f"plain {number}"}]
        response = await self.post("/v1/chat/completions", {"model": "default", "messages": messages})
        assert response.json()["choices"][0]["message"]["content"] == f"plain {number}"

    async def openai_stream(self, number: int) -> None:
        messages = [{"role": "user", "content": f"streamed {number}"}]
        body = {"model": "default", "messages": messages, "stream": True}
        lines = (await self.post("/v1/chat/completions", body)).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text == f"streamed {number}"
        assert lines[-2] == "data: [DONE]"

    async def completion(self, number: int) -> None:
        response = await self.post("/v1/completions", {"model": "default", "prompt": f"text {number}"})
        assert response.json()["choices"][0]["text"] == f"text {number}"

    async def nonsense(self, number: int) -> None:
        bodies: list[dict[str, object]] = [
            {"model": "nobody", "messages": [{"role": "user", "content": "x"}]},
            {"model": "default", "messages": []},
            {"model": "default", "messages": [{"role": "king", "content": "x"}]},
            {"model": "default", "messages": [{"role": "user", "content": "x" * 5000}]},
            {"model": "default", "messages": [{"role": "user", "content": "x"}], "temperature": 9},
        ]
        response = await self.post("/v1/chat/completions", bodies[number % len(bodies)])
        assert response.status_code in (400, 404)

    async def models(self, number: int) -> None:
        response = await self.http.get(("/v1/models", "/api/v1/models", "/api/v1/health")[number % 3])
        self.statuses[response.status_code] += 1

    async def web_socket(self, number: int) -> None:
        async with websockets.connect(f"ws{self.url.removeprefix('http')}/ws/chat") as socket:
            await socket.send(json.dumps({"type": "chat", "message": f"socket {number}", "max_tokens": 16}))
            kinds: list[str] = []
            while not kinds or kinds[-1] not in ("end", "error"):
                kinds.append(json.loads(await socket.recv())["type"])
        assert kinds[-1] == "end"
        self.statuses[101] += 1


@pytest.mark.timeout(180)
async def test_a_thousand_mixed_requests_through_four_workers(data_dir: Path) -> None:
    with serving(data_dir, engine="echo", workers="4", max_waiting="1000") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60.0) as http:
            traffic = Traffic(http, server.url)
            await traffic.open_sessions()
            kinds: list[Callable[[int], Awaitable[None]]] = [
                traffic.session_turn,
                traffic.openai,
                traffic.session_turn,
                traffic.openai_stream,
                traffic.completion,
                traffic.nonsense,
                traffic.models,
                traffic.session_turn,
                traffic.web_socket,
                traffic.openai_stream,
            ]
            todo = itertools.islice(zip(itertools.count(), itertools.cycle(kinds), strict=False), NUM_REQUESTS)

            async def client() -> None:
                for number, kind in todo:
                    await kind(number)

            async with asyncio.TaskGroup() as clients:
                for _ in range(32):
                    clients.create_task(client())
            assert traffic.statuses.total() >= NUM_REQUESTS
            assert not [status for status in traffic.statuses if status >= 500]
            for session_id, contents in traffic.sessions.items():
                turns = (await http.get(f"/api/v1/chat/sessions/{session_id}")).json()["turns"]
                assert Counter(turn["content"] for turn in turns if turn["role"] == "user") == Counter(contents)
                assert len(turns) == 2 * len(contents)
                assert {turn["status"] for turn in turns} == {"done"}
