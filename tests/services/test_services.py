"""Services as a whole: where they may open, and what a full disk does to them."""

import asyncio
import subprocess
import sys

import pytest

from mini_claude.errors import InvalidRequest, StorageError
from mini_claude.services.identity import LOCAL
from mini_claude.services.services import open_services
from mini_claude.types import Message, SamplingParams
from mini_claude.utils.config import Settings

from ..data.full_disk import full_disk
from ..data.slow_disk import slow_disk
from .conftest import Worker, says, talk, texts
from .fakes import FakeEngine, FakeRuntime


async def test_memory_holds_sessions_for_one_worker_only(settings: Settings, engine: FakeEngine) -> None:
    in_memory = Settings(data_dir=settings.data_dir, database_url="sqlite://", engine="echo")
    with pytest.raises(InvalidRequest, match="memory of one process"):
        await open_services(in_memory.model_copy(update={"workers": 2}), FakeRuntime(engine))
    services = await open_services(in_memory, FakeRuntime(engine))
    with pytest.raises(InvalidRequest, match="memory of one process"):  # a second process of a bare uvicorn
        await open_services(in_memory, FakeRuntime(engine))
    reply = await services.chat.say(LOCAL, says("hi"))
    assert await texts(reply) == ["echo: ", "hi ", ""]
    assert len((await services.chat.get(LOCAL, reply.session_id)).turns) == 2
    await services.aclose()
    again = await open_services(in_memory, FakeRuntime(engine))
    assert not await again.chat.list(LOCAL, 10)
    await again.aclose()


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_a_full_disk_refuses_session_turns_and_nothing_else(worker: Worker, engine: FakeEngine) -> None:
    first = await talk(worker, "first")
    with full_disk(worker.services.database):
        with pytest.raises(StorageError) as caught:
            await worker.chat.say(LOCAL, says("too long " * 2000, first.session_id))
        assert caught.value.code == "disk_full"
        assert list(engine.replies.values())[-1].aborted
        stateless = await worker.chat.reply(LOCAL, None, [Message("user", "hi")], SamplingParams())
        assert await texts(stateless) == ["echo: ", "hi ", ""]
        assert len((await worker.chat.get(LOCAL, first.session_id)).turns) == 2
    await talk(worker, "too long " * 2000, first.session_id)
    assert len((await worker.chat.get(LOCAL, first.session_id)).turns) == 4


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_a_disk_that_fills_while_a_reply_runs_loses_only_what_could_not_be_written(
    worker: Worker, engine: FakeEngine
) -> None:
    engine.answer = "word " * 3000
    engine.gate.clear()
    reply = await worker.chat.say(LOCAL, says("talk", resumable=True))
    with full_disk(worker.services.database):
        await engine.open_gate()
        with pytest.raises(StorageError):
            await texts(reply)
        assert (await worker.chat.get(LOCAL, reply.session_id)).turns[1].status == "running"
    # The engine still has it: whoever listens next stores it.
    assert len(await texts(await worker.chat.resume(LOCAL, reply.reply_id, 0))) == 3001
    answer = (await worker.chat.get(LOCAL, reply.session_id)).turns[1]
    assert (answer.status, len(answer.content)) == ("done", 5 * 3000)


async def test_events_are_read_while_the_disk_is_slow(worker: Worker, engine: FakeEngine) -> None:
    engine.answer = "word " * 600
    with slow_disk(worker.services.database):
        saying = asyncio.create_task(worker.chat.say(LOCAL, says("talk")))
        await worker.runtime.start_called.wait()
        async with asyncio.timeout(10):
            while not worker.runtime.streams or worker.runtime.streams[0].num_read < 601:
                await asyncio.sleep(0)
        assert not saying.done()
    reply = await saying
    assert len(await texts(reply)) == 601
    assert (await worker.chat.get(LOCAL, reply.session_id)).turns[1].status == "done"


def test_services_import_neither_a_model_library_nor_a_web_framework() -> None:
    code = (
        "import sys, mini_claude.services.services\n"
        "assert not {'torch', 'transformers', 'fastapi', 'starlette', 'gradio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
