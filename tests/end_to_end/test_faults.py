"""Ends of every kind under load: nothing is cut in silence, nothing acknowledged is lost, nobody is let in."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import httpx
import psutil
import pytest

from ..torture.sizes import Sizes, at_both_sizes
from .clients import (
    NATIVE,
    OPENAI,
    Told,
    ask,
    deaf_stream,
    deaf_web_socket,
    native_stream,
    new_connection,
    openai_stream,
    resume,
    turns,
    user,
    web_socket,
)
from .conftest import Server, serving, until

pytestmark = pytest.mark.alone

MODEL = "smollm2-135m"
ECHO = {"engine": "echo", "max_num_seqs": "4"}  # few run at a time, so that most are still waiting when it ends
LONG = "x" * 1000  # as long as a reply can be
PATIENT, HASTY = "20", "0"  # seconds for running replies at SIGTERM; uvicorn adds one
SHUTDOWNS = [("1", PATIENT), ("1", HASTY), ("2", PATIENT), ("2", HASTY), ("1", HASTY)]
NUM_TALKERS = 2
NUM_STREAMS = 16
Stream = Callable[[str, str, Callable[[], object]], Told]


def session_stream(url: str, content: str, started: Callable[[], object]) -> Told:
    return native_stream(url, content, started, session_id="new")


def is_ready(url: str) -> bool:
    try:
        with new_connection(url) as http:
            return http.get("/api/v1/health", timeout=0.5).status_code == 200
    except httpx.TransportError:
        return False


def talk_until_the_end(url: str, number: int) -> list[Told]:
    """One short session after the other, as long as the server answers: those that were acknowledged."""
    acknowledged: list[Told] = []
    while True:
        content = f"talker {number} turn {len(acknowledged)}"
        try:
            answer = ask(url, content, session_id="new")
        except httpx.TransportError:
            return acknowledged
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] in ("shutting_down", "model_unloading"), answer.text
            return acknowledged
        body = answer.json()
        told = Told(content, body["response"], body["finish_reason"], body["session_id"], body["reply_id"])
        acknowledged.append(told)


@contextmanager
def deaf_clients(url: str) -> Iterator[None]:
    """One of each kind that never reads: none of them may hold up the end."""
    stateless: dict[str, object] = {"messages": user(LONG), "n": 4, "logprobs": True}
    in_session: dict[str, object] = {"messages": user(LONG), "session_id": "new", "max_tokens": 1010, "logprobs": 1}
    frame: dict[str, object] = {"type": "chat", "message": LONG, "max_tokens": 1010}
    with deaf_stream(url, OPENAI, stateless), deaf_stream(url, NATIVE, in_session), deaf_web_socket(url, *[frame] * 4):
        yield


def is_cut(future: Future[Told]) -> bool:
    return future.done() and future.result().ending == "shutting_down"


def num_done(futures: Iterable[Future[Told]]) -> int:
    return sum(future.done() for future in futures)


def num_connections(server: Server) -> int:
    lines = [line for process in server.processes() for line in process.net_connections("tcp")]
    return sum(line.status == psutil.CONN_ESTABLISHED for line in lines)


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def shut_down_under_load(server: Server, deadline: str) -> list[Told]:
    """SIGTERM while the engine stands still, so that it is certain to come upon replies that run, replies that wait
    and requests that are not accepted yet. The engine goes on when the server is not ready any more, or in haste
    when the deadline is just over."""
    until(lambda: server.pids(f"engine:{MODEL}"), 30, "the engine")
    engine = psutil.Process(server.pids(f"engine:{MODEL}")[0])
    begun = threading.Event()
    kinds: Sequence[Stream] = [session_stream, openai_stream] * 8 + [web_socket] * 2
    with deaf_clients(server.url) if deadline == HASTY else contextlib.nullcontext():
        before = num_connections(server)
        with ThreadPoolExecutor(len(kinds) + NUM_TALKERS) as pool, contextlib.ExitStack() as stopped:
            futures = [pool.submit(stream, server.url, LONG, begun.set) for stream in kinds]
            talkers = [pool.submit(talk_until_the_end, server.url, number) for number in range(NUM_TALKERS)]
            assert begun.wait(30)
            stopped.enter_context(suspended(engine))
            expected = before + len(kinds) + NUM_TALKERS
            until(lambda: num_connections(server) + num_done(futures) >= expected, 10, "a client is missing")
            server.process.send_signal(signal.SIGTERM)
            until(lambda: not is_ready(server.url), 5, "it is still ready")
            assert not all(future.done() for future in futures)
            if deadline == HASTY:
                until(lambda: any(is_cut(future) for future in futures), 10, "no reply was cut")
            stopped.close()
            told = [future.result() for future in futures]
            said = [each for talker in talkers for each in talker.result()]
        assert server.process.wait(int(deadline) + 10) == 0
    sockets = [each for each in told if each.ending.startswith(("closed", "refused"))]
    streams = [each for each in told if each not in sockets]
    assert all(each.asked.startswith(each.text) for each in told)
    assert {each.ending for each in sockets} <= {"closed 1012", "refused"}  # 1012 is "service restart": resume it
    endings = {each.ending for each in streams}
    if deadline == PATIENT:
        assert endings == {"stop"}
    else:
        assert endings <= {"stop", "abort", "reply_aborted", "shutting_down"}
    for each in [*told, *said]:
        assert each.text == each.asked or each.ending != "stop"
    return [*told, *said]


def check_stored(url: str, told: list[Told]) -> None:
    """Every session that a client was told of is there, and no turn of any session runs for ever."""
    for each in told:
        if each.session_id is None:
            continue
        asked, reply = turns(url, each.session_id)
        assert (asked["content"], reply["id"]) == (each.asked, each.reply_id)
        assert reply["content"].startswith(each.text)
        assert reply["content"] == each.text or each.ending != "stop"
    with new_connection(url) as http:
        sessions = http.get("/api/v1/chat/sessions", params={"limit": 200}).json()["sessions"]
    stored = [turn for session in sessions for turn in turns(url, session["id"])]
    assert [turn for turn in stored if turn["status"] == "running"] == []


@at_both_sizes
def test_sigterm_under_load_cuts_nothing_in_silence_and_leaves_no_turn_running(data_dir: Path, sizes: Sizes) -> None:
    told: list[Told] = []
    for workers, deadline in islice(cycle(SHUTDOWNS), sizes.shutdowns):
        with serving(data_dir, **ECHO, workers=workers, shutdown_seconds=deadline) as server:
            check_stored(server.url, told)
            told = shut_down_under_load(server, deadline)
    with serving(data_dir, **ECHO) as server:
        check_stored(server.url, told)
        for each in told:
            if each.reply_id is not None and each.ending.startswith("closed"):
                assert resume(server.url, each.reply_id).ending in ("abort", "stop")


def test_a_load_balancer_is_told_to_go_elsewhere_while_requests_are_still_answered(data_dir: Path) -> None:
    with serving(data_dir, **ECHO, drain_seconds="600") as server:
        until(lambda: is_ready(server.url), 30, "it is not ready")
        begun = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(native_stream, server.url, LONG, begun.set)
            assert begun.wait(30)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: not is_ready(server.url), 5, "it is still ready")
            health = server.http.get("/api/v1/health")
            assert (health.status_code, health.json()["server"]) == (503, "shutting down")
            assert health.json()["database"] == health.json()["supervisor"] == "ok"
            assert ask(server.url, "late").json()["response"] == "late"
            assert running.result().ending == "stop"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0


# --- kill -9 ---


def workers_of(server: Server) -> set[int]:
    try:
        with new_connection(server.url) as http:
            text = http.get("/api/v1/metrics").text
    except httpx.TransportError:
        return set()
    lines = [line for line in text.splitlines() if 'role="worker"' in line and "_memory_" in line]
    return {int(line.split('pid="')[1].split('"')[0]) for line in lines}


def busiest_worker(server: Server) -> psutil.Process:
    """The worker with the most open connections."""
    return max(map(psutil.Process, workers_of(server)), key=lambda worker: len(worker.net_connections("tcp")))


def kill_all(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        process.kill()


def kill_while_streaming(server: Server, kill: Callable[[], object]) -> list[str]:
    """Ids of the sessions that clients were told of before the kill."""
    acknowledged: list[str] = []
    begun = threading.Barrier(NUM_STREAMS + 1)

    def stream() -> None:
        body = {"messages": user(LONG), "stream": True, "session_id": "new", "max_tokens": len(LONG) + 10}
        with new_connection(server.url) as http, http.stream("POST", NATIVE, json=body) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: start"
            acknowledged.append(json.loads(next(lines)[6:])["session_id"])
            begun.wait(30)
            with contextlib.suppress(httpx.TransportError):  # the first ones may have got everything
                list(lines)

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        futures = [pool.submit(stream) for _ in range(NUM_STREAMS)]
        begun.wait(30)
        kill()
        for future in futures:
            future.result()
    return acknowledged


def test_what_was_acknowledged_survives_kill_9(data_dir: Path) -> None:
    with serving(data_dir, **ECHO, workers="2") as server:
        until(lambda: len(workers_of(server)) == 2, 30, "two workers")
        acknowledged = kill_while_streaming(server, lambda: busiest_worker(server).kill())
        until(lambda: len(workers_of(server)) == 2, 30, "a new worker")
        for session_id in acknowledged:
            asked, reply = turns(server.url, session_id)
            assert asked["content"] == LONG
            assert resume(server.url, reply["id"]).text == LONG  # its engine lives, and any worker takes it up
        check_stored(server.url, [])
        acknowledged += kill_while_streaming(server, lambda: kill_all(server.processes()))
        server.process.wait(10)
    with serving(data_dir, **ECHO) as server:
        for session_id in acknowledged:
            asked, reply = turns(server.url, session_id)
            assert asked["content"] == LONG
            if reply["status"] == "running":
                assert resume(server.url, reply["id"]).ending == "engine_died"
            assert ask(server.url, "and on", session_id=session_id).status_code == 200
        check_stored(server.url, [])


# --- strangers ---


HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def network_address() -> str | None:
    """An address of this machine that is not loopback, if it has one. Connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def refusal_of_serve(data_dir: Path) -> str:
    """What `mini-claude serve --host 0.0.0.0` prints where there is no key."""
    command = [sys.executable, "-m", "mini_claude.cli", "serve", "--host", "0.0.0.0"]
    environment = os.environ | {"MINI_CLAUDE_DATA_DIR": str(data_dir)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done.stderr.removeprefix("error: ").strip()


def test_without_a_key_a_bare_uvicorn_refuses_strangers_in_the_words_of_serve(data_dir: Path) -> None:
    uvicorn = ("uvicorn", "mini_claude.web.api:app", "--host", "0.0.0.0", "--port", "{port}")
    with serving(data_dir, *uvicorn, **ECHO) as server:
        # uvicorn believes a proxy on this machine, which tells of a client elsewhere, but not what a stranger says.
        strangers = [(server.url, {"X-Forwarded-For": "203.0.113.7"})]
        if (address := network_address()) is not None:
            elsewhere = server.url.replace("127.0.0.1", address)
            strangers += [(elsewhere, {}), (elsewhere, {"X-Forwarded-For": "127.0.0.1", "Host": "127.0.0.1"})]
        sentences = set()
        for url, headers in strangers:
            with new_connection(url) as http:
                http.headers.update(headers)
                for path in (NATIVE, OPENAI, "/v1/completions", "/api/v1/models/load"):
                    answer = http.post(path, json={"messages": user("let me in")})
                    assert answer.status_code == 401, path
                    sentences.add(answer.json()["error"]["message"])
                for path in ("/v1/models", "/api/v1/chat/sessions", "/api/v1/metrics", "/docs", "/openapi.json"):
                    answer = http.get(path)
                    assert answer.status_code == 401, path
                    sentences.add(answer.json()["error"]["message"])
                assert http.get("/api/v1/health/live").status_code == 200
                refused = http.get("/ws/chat", headers=HANDSHAKE)
                assert refused.status_code == 401
                sentences.add(refused.json()["error"]["message"])
        assert ask(server.url, "hello").json()["response"] == "hello"
        (sentence,) = sentences
        assert sentence in refusal_of_serve(data_dir)
