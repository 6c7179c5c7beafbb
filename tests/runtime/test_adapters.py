"""What an engine process does with the adapter that a request names, over its real socket, with an engine of glass."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from mini_claude.engine.echo_engine import EchoEngine
from mini_claude.errors import ModelLoadError
from mini_claude.models.echo_model import EchoModel
from mini_claude.runtime import sockets
from mini_claude.runtime.engine_connection import EngineConnection
from mini_claude.runtime.engine_server import EngineServer
from mini_claude.runtime.launches import EngineLaunch
from mini_claude.runtime.loaded_model import LoadedModel
from mini_claude.runtime.messages import StartChat, StartCompletion
from mini_claude.types import AdapterRef, GenerationDelta, GenerationRequest, LoadOptions, Message, SamplingParams
from mini_claude.utils.config import Settings

from .conftest import ECHO

GOOD, BAD = AdapterRef("echo:good@1", "/good"), AdapterRef("echo:bad@1", "/bad")


class GlassEngine(EchoEngine):
    """Shows what it was asked for; one adapter cannot be loaded."""

    def __init__(self, model: EchoModel) -> None:
        super().__init__(model.codec, model.context_length, LoadOptions(engine="echo"))
        self.events: list[str] = []

    async def load_adapter(self, adapter: AdapterRef) -> None:
        self.events.append(f"load {adapter.name}")
        if adapter == BAD:
            raise ModelLoadError("It was made for another model.")

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        self.events.append(f"generate {request.request_id} {request.adapter.name if request.adapter else 'base'}")
        return super().generate(request)


@pytest.fixture
def engine() -> GlassEngine:
    return GlassEngine(EchoModel("echo"))


@pytest.fixture
async def connection(engine: GlassEngine, tmp_path: Path) -> AsyncIterator[EngineConnection]:
    address = sockets.new_engine_address(tmp_path)
    launch = EngineLaunch(ECHO, LoadOptions(engine="echo"), address, "/nobody", {})
    model = LoadedModel(EchoModel("echo"), engine, "echo", dtype="bytes", device="cpu")
    server = EngineServer(launch, Settings(data_dir=tmp_path, engine="echo"), model)
    await server.listen()
    running = asyncio.create_task(server.run(lambda message: None))  # type: ignore[arg-type]
    client = await EngineConnection.open("echo", address)
    yield client
    await client.aclose()
    server.drain()
    await running


async def test_chats_and_completions_carry_their_adapter_to_the_engine(
    connection: EngineConnection, engine: GlassEngine
) -> None:
    params = SamplingParams(max_tokens=3)
    requests = (
        StartChat("chat", (Message("user", "hello"),), params, adapter=GOOD),
        StartCompletion("text", "hello", params, GOOD),
        StartChat("plain", (Message("user", "hello"),), params),
    )
    for request in requests:
        assert [event async for event in await connection.start(request)][-1].delta.finish_reason
    assert engine.events == [
        *("load echo:good@1", "generate chat echo:good@1", "load echo:good@1", "generate text echo:good@1"),
        "generate plain base",
    ]


async def test_an_adapter_that_cannot_be_loaded_is_a_refusal_before_any_event(
    connection: EngineConnection, engine: GlassEngine
) -> None:
    going_on = await connection.start(StartCompletion("other", "hello", SamplingParams()))
    with pytest.raises(ModelLoadError, match="made for another model"):
        await connection.start(StartChat("bad", (Message("user", "hello"),), SamplingParams(), adapter=BAD))
    assert "".join([event.delta.text async for event in going_on]) == "hello"
    assert not any(event.startswith("generate bad") for event in engine.events)
