"""Whole servers with one and with four workers on SQLite and on a real PostgreSQL, there with Redis, and two hosts."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mini_claude.data.database import Database
from mini_claude.data.models import ModelRepository
from mini_claude.types import ModelSource, ModelSpec

from ..postgresql import PostgreSQL
from ..redis_server import Redis
from ..training.tiny_adapters import save_base
from .conftest import Server, serving, until, with_model

pytestmark = [pytest.mark.real_model, pytest.mark.alone, pytest.mark.timeout(400)]

CHAT = "/api/v1/chat/completions"
OPENAI = "/v1/chat/completions"
SESSIONS = "/api/v1/chat/sessions"
JOBS = "/api/v1/training/jobs"
ROW = b'{"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]}\n'


@dataclass(frozen=True)
class Store:
    """Where servers store, as their settings."""

    settings: dict[str, str]
    database_url: str

    def register_tiny(self, folder: Path) -> None:
        """Let every server on it know a model that is trained in seconds."""
        database = Database(self.database_url)
        database.migrate()
        source = ModelSource("folder", str(save_base(folder)))
        ModelRepository(database).add(ModelSpec("tiny", "causal_lm", (source,)))
        database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, data_dir: Path) -> Store:
    """PostgreSQL comes with Redis, which hosts that share the one need too."""
    if request.param == "sqlite":
        data_dir.mkdir()
        return Store({}, f"sqlite:///{data_dir / 'mini-claude.db'}")
    url: str = request.getfixturevalue("postgresql_url")
    redis: Redis = request.getfixturevalue("redis")
    return Store({"database_url": url, "limits_url": redis.url}, url)


@dataclass(frozen=True)
class Client:
    """With a key, and for every request a new connection: the kernel hands each to any worker."""

    url: str
    key: str

    def call(self, method: str, path: str, **rest: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}", **rest.pop("headers", {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=120, **rest)

    def say(self, content: str, **fields: object) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, **fields}
        return self.call("POST", CHAT, json=body)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """While a reply is written that does not end by itself (0 and 2 would end it) and is hung up at last."""
        messages = [{"role": "user", "content": "Write a very long story about a fox and a river."}]
        body = {"messages": messages, "max_tokens": 1500, "stream": True, "logit_bias": {"0": -100, "2": -100}}
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.stream("POST", f"{self.url}{OPENAI}", json=body, headers=headers, timeout=120) as answer:
            assert answer.status_code == 200
            parts = answer.iter_raw()  # kept: whoever drops it hangs up
            next(parts)
            yield

    def at_once(self, num: int, **fields: object) -> Counter[int]:
        """How often each status came."""
        with ThreadPoolExecutor(num) as pool:
            return Counter(pool.map(lambda _: self.say("Hi", **fields).status_code, range(num)))


def admin_of(server: Server) -> Client:
    """Makes the first key."""
    answer = server.http.post("/api/v1/keys", json={"name": "admin"})
    assert answer.status_code == 201, answer.text
    server.http.headers["authorization"] = f"Bearer {answer.json()['key']}"
    return Client(server.url, answer.json()["key"])


def guest(admin: Client, **limits: int) -> Client:
    answer = admin.call("POST", "/api/v1/keys", json={"name": "guest", "role": "user", **limits})
    assert answer.status_code == 201, answer.text
    return Client(admin.url, answer.json()["key"])


@pytest.mark.parametrize("workers", ["1", "4"])
def test_sessions_limits_and_jobs_are_the_same_through_every_worker(
    data_dir: Path, tmp_path: Path, smollm2_folder: Path, store: Store, workers: str
) -> None:
    with_model(data_dir, smollm2_folder)
    store.register_tiny(tmp_path / "tiny")
    with serving(data_dir, workers=workers, **store.settings) as server:
        admin = admin_of(server)
        until(lambda: len(server.pids("worker")) == int(workers), 60, f"{workers} workers")
        job_id = submitted(admin)
        check_sessions(guest(admin), guest(admin))
        check_limits(admin)
        check_job(admin, job_id)
        assert len(server.pids("engine:smollm2-135m")) == 1


def check_sessions(own: Client, foreign: Client) -> None:
    first = own.say("Name the capital of France.", session_id="new", max_tokens=32).json()
    assert first["response"] == "The capital of France is Paris."
    session = f"{SESSIONS}/{first['session_id']}"
    said = [f"Größe {number}" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:  # turns at once make branches, and all are kept
        answers = list(pool.map(lambda each: own.say(each, session_id=first["session_id"]), said))
    assert {answer.status_code for answer in answers} == {200}
    stored = own.call("GET", session).json()["turns"]
    assert sorted(turn["content"] for turn in stored if turn["role"] == "user")[:8] == said
    assert [turn["status"] for turn in stored] == ["done"] * 18
    found = own.call("GET", SESSIONS, params={"q": "größe 7"}).json()["sessions"]
    assert [each["id"] for each in found] == [first["session_id"]]
    assert own.say("a\0b", session_id=first["session_id"]).status_code == 400
    assert foreign.call("GET", session).status_code == 404
    assert own.call("DELETE", session).status_code == 204
    assert own.call("GET", session).status_code == 404


def check_limits(admin: Client) -> None:
    limited = guest(admin, requests_per_minute=5)
    assert limited.at_once(12) == {200: 5, 429: 7}
    (left,) = limited.call("GET", "/api/v1/me").json()["limits"]
    assert (left["name"], left["remaining"]) == ("requests_per_minute", 0)
    few = guest(admin, concurrent_replies=2)
    with few.streaming(), few.streaming():
        assert few.at_once(4) == {429: 4}
    until(lambda: few.call("GET", "/api/v1/me").json()["limits"][0]["remaining"] == 2, 20, "a place was not given back")
    assert few.say("Hi").status_code == 200


def submitted(client: Client) -> str:
    """The id of a job that many ask for at once, with one key."""
    files = {"file": ("rows.jsonl", ROW * 8)}
    answer = client.call("POST", "/api/v1/datasets", files=files, data={"name": "rows"})
    assert answer.status_code == 201, answer.text
    body = {
        "dataset_path": "rows",
        "model_name": "tiny",
        "adapter_name": "bot",
        "training_args": {"max_steps": 3, "per_device_train_batch_size": 4, "max_length": 64},
    }
    headers = {"idempotency-key": "one"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.call("POST", JOBS, json=body, headers=headers), range(8)))
    assert Counter(each.status_code for each in answers) == {200: 7, 201: 1}
    (job_id,) = {each.json()["id"] for each in answers}
    return str(job_id)


def check_job(client: Client, job_id: str) -> None:
    path = f"{JOBS}/{job_id}"
    until(lambda: client.call("GET", path).json()["state"] in ("completed", "failed"), 240, "the job has not ended")
    job = client.call("GET", path).json()
    assert (job["state"], job["adapter"]) == ("completed", "tiny:bot@1"), job
    events = client.call("GET", f"{path}/progress", params={"limit": 1000}).json()["events"]
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["data"]["state"] for event in events if event["type"] == "state"].count("running") == 1


def test_two_hosts_share_conversations_and_limits_and_outlive_a_restart_of_the_database(
    tmp_path: Path, own_postgresql: PostgreSQL, redis: Redis
) -> None:
    with own_postgresql.database() as url:
        store = Store({"database_url": url, "limits_url": redis.url, "engine": "echo", "workers": "2"}, url)
        with serving(tmp_path / "a", **store.settings) as one, serving(tmp_path / "b", **store.settings) as two:
            admin = admin_of(one)
            here = guest(admin, requests_per_minute=10)
            there = Client(two.url, here.key)
            first = here.say("hello", session_id="new").json()
            assert there.say("again", session_id=first["session_id"]).status_code == 200
            with ThreadPoolExecutor(2) as pool:
                counted = sum(pool.map(lambda client: client.at_once(8), (here, there)), Counter[int]())
            assert counted == {200: 8, 429: 8}
            own_postgresql.stop()
            assert {client.call("GET", SESSIONS).status_code for client in (here, there)} == {503}
            own_postgresql.start()
            for client in (here, there):
                for _ in range(8):  # whichever worker it comes to
                    turns = client.call("GET", f"{SESSIONS}/{first['session_id']}").json()["turns"]
                    assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["hello", "again"]
            redis.stop()
            assert {client.say("hello").status_code for client in (here, there)} == {503}
            assert admin.say("hello").status_code == 200
