"""Replies over real processes: numbered events, faults of every process, resuming, slow readers."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterable

import psutil
import pytest

from mini_claude.errors import EngineDied, InternalError, MiniClaudeError, NotFound, Unavailable
from mini_claude.runtime.client import RuntimeClient
from mini_claude.runtime.connection import connect
from mini_claude.runtime.messages import Codec, EngineReport, Publish, ReplyEvent, RequestServed, StartCompletion
from mini_claude.runtime.model_slot import GONE_SECONDS
from mini_claude.runtime.supervisor import WATCH_SECONDS
from mini_claude.types import EngineStats, LoadOptions, ModelSource, ModelSpec, SamplingParams
from mini_claude.utils.config import Settings

from .conftest import ECHO, chat, engine_pid, eventually, gone, supervisor_pid

OPTIONS = LoadOptions(engine="echo")


async def read(reply: AsyncIterable[ReplyEvent]) -> str:
    return "".join([event.delta.text async for event in reply])


async def running(runtime: RuntimeClient) -> int:
    return (await runtime.engine_report(ECHO, OPTIONS)).stats.running


async def until_idle(runtime: RuntimeClient) -> None:
    async with asyncio.timeout(10):
        while await running(runtime):
            await asyncio.sleep(0.02)


async def test_events_are_numbered_from_one_and_the_last_has_the_reason(runtime: RuntimeClient) -> None:
    reply = await runtime.start(ECHO, OPTIONS, chat("r"))
    events = [event async for event in reply]
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.delta.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].delta.finish_reason == "stop"
    assert reply.accepted.prompt_tokens == len("hello") + 3


async def test_a_completion_needs_no_template(runtime: RuntimeClient) -> None:
    reply = await runtime.start(ECHO, OPTIONS, StartCompletion("r", "plain text", SamplingParams()))
    assert await read(reply) == "plain text"


async def test_an_error_of_one_reply_reaches_it_alone(runtime: RuntimeClient) -> None:
    replies = [await runtime.start(ECHO, OPTIONS, chat(f"r{i}", "poison" if i == 3 else f"text {i}")) for i in range(8)]
    texts = await asyncio.gather(*(read(reply) for reply in replies), return_exceptions=True)
    assert isinstance(texts[3], InternalError)
    assert [text for i, text in enumerate(texts) if i != 3] == [f"text {i}" for i in range(8) if i != 3]


async def test_kill_of_the_engine_gives_every_stream_one_error_and_the_next_request_works(
    runtime: RuntimeClient,
) -> None:
    pid = await engine_pid(runtime)
    streaming = [asyncio.Event() for _ in range(8)]

    async def stream(number: int) -> None:
        async for _ in await runtime.start(ECHO, OPTIONS, chat(f"r{number}", max_tokens=2000)):
            streaming[number].set()

    streams = [asyncio.create_task(stream(i)) for i in range(8)]
    await asyncio.gather(*(event.wait() for event in streaming))
    os.kill(pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*streams, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineDied] * 8
    assert await read(await runtime.start(ECHO, OPTIONS, chat("next", "again"))) == "again"
    assert (await runtime.status()).models[0].restarts == 1


async def test_kill_of_the_supervisor_takes_its_engines_along_and_the_next_request_starts_another(
    runtime: RuntimeClient,
) -> None:
    old_engine, old_supervisor = await engine_pid(runtime), await supervisor_pid(runtime)
    os.kill(old_supervisor, signal.SIGKILL)
    await eventually(lambda: gone(old_engine))
    assert await read(await runtime.start(ECHO, OPTIONS, chat("next", "again"))) == "again"
    assert await supervisor_pid(runtime) != old_supervisor


async def test_a_supervisor_that_was_killed_is_started_again_though_nobody_calls(runtime: RuntimeClient) -> None:
    """Training jobs wait for it."""

    def children() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if not gone(child.pid)]

    killed = await supervisor_pid(runtime)
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: gone(killed))
    await eventually(lambda: any("mini_claude.runtime.supervisor" in child.cmdline() for child in children()))
    assert await supervisor_pid(runtime) != killed


async def test_a_supervisor_that_was_told_to_end_stays_ended_until_somebody_calls(runtime: RuntimeClient) -> None:
    """A service manager stops all processes at once; a worker that drains must not start a new one then."""
    told = await supervisor_pid(runtime)
    connection = runtime._supervisor
    assert connection is not None
    os.kill(told, signal.SIGTERM)
    await eventually(lambda: gone(told) and connection.closed)
    assert connection.ended_on_purpose
    await eventually(lambda: not runtime._keepers)
    assert runtime._supervisor is connection
    assert await supervisor_pid(runtime) != told


async def test_without_lingering_a_supervisor_still_lives_as_long_as_its_worker(settings: Settings) -> None:
    runtime = await RuntimeClient.connect(settings.model_copy(update={"linger_seconds": 0.0}))
    pid = await supervisor_pid(runtime)
    await asyncio.sleep(3 * WATCH_SECONDS)  # what must not happen would happen by then
    assert await supervisor_pid(runtime) == pid
    await runtime.aclose()
    await eventually(lambda: gone(pid))


async def test_a_worker_that_comes_while_the_supervisor_ends_gets_the_next_one(
    runtime: RuntimeClient, settings: Settings
) -> None:
    told, engine = await supervisor_pid(runtime), psutil.Process(await engine_pid(runtime))
    engine.suspend()  # so that the supervisor has to wait for it
    try:
        await runtime.shutdown_supervisor()
        connection = runtime._supervisor
        assert connection is not None
        await eventually(lambda: connection.ended_on_purpose)
        connecting = asyncio.create_task(RuntimeClient.connect(settings))
        await asyncio.wait([connecting], timeout=0.5)
        assert not connecting.done()
        assert not gone(told)
    finally:
        engine.resume()
    newcomer = await connecting
    assert gone(told)
    assert await read(await newcomer.start(ECHO, OPTIONS, chat("r", "hello"))) == "hello"
    await newcomer.shutdown_supervisor()
    await newcomer.aclose()


async def test_a_line_that_was_cut_though_the_engine_lives_is_opened_anew(runtime: RuntimeClient) -> None:
    pid = await engine_pid(runtime)
    await (await runtime.start(ECHO, OPTIONS, chat("first", "first"))).aclose()
    await runtime._engines["echo"].aclose()
    async with asyncio.timeout(2 * GONE_SECONDS):
        assert await read(await runtime.start(ECHO, OPTIONS, chat("next", "again"))) == "again"
    assert await engine_pid(runtime) == pid


async def test_an_engine_that_cannot_be_reached_is_said_to_be_so(
    runtime: RuntimeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("mini_claude.runtime.engine_connection.connect", fail)
    with pytest.raises(Unavailable, match="Too many open files"):
        await runtime.start(ECHO, OPTIONS, chat("r"))
    monkeypatch.undo()
    assert await read(await runtime.start(ECHO, OPTIONS, chat("r", "again"))) == "again"


async def test_a_report_for_somebody_who_has_just_left_disturbs_no_reply(runtime: RuntimeClient) -> None:
    reply = await runtime.start(ECHO, OPTIONS, chat("r", "fine"))
    engine = runtime._engines["echo"]
    assert engine._connection is not None
    asking = asyncio.create_task(engine.report())
    await asyncio.sleep(0)
    (number,) = engine._reports
    asking.cancel()
    engine._reports[number].cancel()
    engine._receive(engine._connection, Codec.encode(EngineReport(number, EngineStats())))
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await read(reply) == "fine"


async def test_facts_go_together_and_before_whatever_is_asked_next(
    runtime: RuntimeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = runtime._supervisor
    assert supervisor is not None
    posted: list[object] = []
    post = supervisor.post

    def noted(body: Publish) -> None:
        posted.append(body)
        post(body)

    monkeypatch.setattr(supervisor, "post", noted)
    facts = [RequestServed("GET", f"/route/{number}", 200, 0.1) for number in range(3)]
    runtime.publish(facts[0], facts[1])
    runtime.publish(facts[2])
    assert posted == []
    text = await runtime.metrics()
    assert posted == [Publish(tuple(facts))]
    assert all(f"/route/{number}" in text for number in range(3))
    runtime.publish(facts[0])  # nobody asks for anything: it goes by itself
    await eventually(lambda: len(posted) == 2)


async def test_an_engine_that_keeps_crashing_is_left_alone_for_a_while(runtime: RuntimeClient) -> None:
    await engine_pid(runtime)
    for restarts in (1, 2, 3):
        pid = (await runtime.status()).models[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while (info := (await runtime.status()).models[0]).restarts < restarts or info.state == "loading":
                await asyncio.sleep(0.02)
    with pytest.raises(Unavailable) as caught:
        await engine_pid(runtime)
    assert caught.value.code == "engine_crash_loop"
    assert caught.value.retry_after
    assert (await runtime.status()).models[0].state == "failed"


async def test_many_workers_at_once_start_one_supervisor(settings: Settings) -> None:
    clients = await asyncio.gather(*(RuntimeClient.connect(settings) for _ in range(8)))
    pids = {await supervisor_pid(client) for client in clients}
    assert len(pids) == 1
    await clients[0].shutdown_supervisor()
    for client in clients:
        await client.aclose()
    await eventually(lambda: gone(pids.pop()) if pids else True)


async def test_racing_loads_load_once(runtime: RuntimeClient) -> None:
    infos = await asyncio.gather(*(runtime.load(ECHO, OPTIONS) for _ in range(50)))
    assert len({info.pid for info in infos}) == 1


async def test_a_failed_load_says_why_and_leaves_the_loaded_model_alone(runtime: RuntimeClient) -> None:
    pid = await engine_pid(runtime)
    broken = ModelSpec("echo", "causal_lm", (ModelSource("folder", "/nonexistent"),))
    results = await asyncio.gather(
        *(runtime.load(broken, LoadOptions(engine="torch")) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(result, MiniClaudeError) and "/nonexistent" in result.message for result in results)
    assert await read(await runtime.start(ECHO, OPTIONS, chat("r", "still here"))) == "still here"
    assert await engine_pid(runtime) == pid


async def test_loading_with_other_options_replaces_the_process_once_the_new_one_is_ready(
    runtime: RuntimeClient,
) -> None:
    old = await engine_pid(runtime)
    reply = await runtime.start(ECHO, OPTIONS, chat("r", "before"))
    info = await runtime.load(ECHO, LoadOptions(engine="echo", max_num_seqs=3))
    assert info.pid != old
    assert await read(reply) == "before"
    await eventually(lambda: gone(old))
    assert await read(await runtime.start(ECHO, OPTIONS, chat("r2", "after"))) == "after"


async def test_unload_lets_running_replies_finish_and_ends_the_process(runtime: RuntimeClient) -> None:
    pid = await engine_pid(runtime)
    reply = await runtime.start(ECHO, OPTIONS, chat("r", max_tokens=200))
    _, text = await asyncio.gather(runtime.unload("echo"), read(reply))
    assert len(text) > 100
    assert gone(pid)
    assert (await runtime.status()).models == ()
    with pytest.raises(NotFound):
        await runtime.unload("echo")


async def test_an_idle_model_is_unloaded(settings: Settings) -> None:
    runtime = await RuntimeClient.connect(settings.model_copy(update={"idle_unload_seconds": 0.3}))
    pid = await engine_pid(runtime)
    await eventually(lambda: gone(pid))
    await runtime.shutdown_supervisor()
    await runtime.aclose()


async def test_closing_a_reply_aborts_it(runtime: RuntimeClient) -> None:
    reply = await runtime.start(ECHO, OPTIONS, chat("r", max_tokens=2000))
    await reply.aclose()
    await until_idle(runtime)


async def test_abort_ends_a_reply_with_that_reason(runtime: RuntimeClient) -> None:
    reply = await runtime.start(ECHO, OPTIONS, chat("r", max_tokens=2000))
    reply.abort()
    events = [event async for event in reply]
    assert events[-1].delta.finish_reason == "abort"


async def test_a_reader_that_never_reads_is_cut_off_at_256_events(runtime: RuntimeClient) -> None:
    reply = await runtime.start(ECHO, OPTIONS, chat("r", max_tokens=2000))
    await until_idle(runtime)
    count = 0
    with pytest.raises(Unavailable) as caught:
        async for _ in reply:
            count += 1
    assert (caught.value.code, count) == ("slow_consumer", 256)


async def test_another_worker_gets_what_it_missed_and_then_follows(runtime: RuntimeClient, settings: Settings) -> None:
    first = await runtime.start(ECHO, OPTIONS, chat("r", "abc", max_tokens=100, resumable=True))
    whole = [event async for event in first]
    other = await RuntimeClient.connect(settings)
    rest = [event async for event in await other.attach(ECHO, OPTIONS, "r", after=40)]
    assert rest == whole[40:]
    await other.aclose()


async def test_a_resumable_reply_goes_on_with_nobody_listening(runtime: RuntimeClient) -> None:
    reply = await runtime.start(ECHO, OPTIONS, chat("r", max_tokens=1500, resumable=True))
    await reply.aclose()
    again = await runtime.attach(ECHO, OPTIONS, "r", after=0)
    events = [event async for event in again]
    assert events[-1].delta.finish_reason == "length"
    assert events[-1].number == 1500


async def test_a_reply_that_nobody_knows_cannot_be_resumed(runtime: RuntimeClient) -> None:
    with pytest.raises(NotFound):
        await runtime.attach(ECHO, OPTIONS, "never", after=0)


async def test_an_abandoned_resumable_reply_is_aborted_after_its_grace_period(settings: Settings) -> None:
    runtime = await RuntimeClient.connect(settings.model_copy(update={"resume_seconds": 0.0}))
    reply = await runtime.start(ECHO, OPTIONS, chat("r", max_tokens=2000, resumable=True))
    await reply.aclose()
    await until_idle(runtime)
    stats = (await runtime.engine_report(ECHO, OPTIONS)).stats
    assert stats.generated_tokens_total < 2000
    await runtime.shutdown_supervisor()
    await runtime.aclose()


async def test_a_frame_that_is_no_message_is_dropped(runtime: RuntimeClient) -> None:
    address = (await runtime._acquire(ECHO, OPTIONS)).address
    stranger = await connect(address, lambda _stranger, _frame: None, lambda _stranger: None)
    stranger.send(b"\xc1 not msgpack")
    await stranger.aclose()
    assert await read(await runtime.start(ECHO, OPTIONS, chat("r", "fine"))) == "fine"


WORKER = """
import asyncio, sys
from pathlib import Path
from mini_claude.runtime.client import RuntimeClient
from mini_claude.runtime.messages import StartChat
from mini_claude.runtime.supervisor import WATCH_SECONDS
from mini_claude.types import EngineStats, LoadOptions, Message, ModelSpec, SamplingParams
from mini_claude.utils.config import Settings

async def main() -> None:
    runtime = await RuntimeClient.connect(Settings(data_dir=Path(sys.argv[1]), engine="echo"))
    spec, options = ModelSpec("echo", "causal_lm", ()), LoadOptions(engine="echo")
    info = await runtime.load(spec, options)
    supervisor = next(p.pid for p in (await runtime.status()).processes if p.role == "supervisor")
    print(supervisor, info.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_nothing_is_left_when_the_last_worker_was_killed(settings: Settings) -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(settings.data_dir)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    supervisor, engine = map(int, (await asyncio.to_thread(worker.stdout.readline)).split())
    worker.kill()
    worker.wait()
    worker.stdout.close()
    await eventually(lambda: gone(supervisor) and gone(engine))
