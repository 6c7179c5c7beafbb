"""Adapters behind the engine's protocol: loaded while others answer, shared, refused alone, dropped when unused."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from mini_claude.engine import torch_model
from mini_claude.engine.adapter_weights import AdapterWeights, LayerShape, read_adapter
from mini_claude.engine.engine_core import EngineCore
from mini_claude.engine.loaded_adapters import MAX_ADAPTERS
from mini_claude.engine.torch_engine import TorchEngine
from mini_claude.errors import ModelLoadError, Unavailable
from mini_claude.models.adapter_files import CONFIG_FILE
from mini_claude.models.echo_model import ByteCodec
from mini_claude.types import AdapterRef, GenerationDelta, GenerationRequest, LoadOptions, SamplingParams

from .peft_adapters import NUM_TOKENS, PeftAdapter, make_adapter

PROMPT = tuple(range(65, 95))
BuildModel = Callable[[str], PreTrainedModel]


@pytest.fixture(scope="module")
def adapter(build_model: BuildModel, tmp_path_factory: pytest.TempPathFactory) -> PeftAdapter:
    return make_adapter(build_model("llama"), tmp_path_factory.mktemp("adapters") / "one")


@pytest.fixture
def broken(adapter: PeftAdapter, tmp_path: Path) -> AdapterRef:
    """With an option that is not served."""
    config = json.loads((Path(adapter.ref.folder) / CONFIG_FILE).read_text())
    for file in Path(adapter.ref.folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"modules_to_save": ["lm_head"]}))
    return AdapterRef("tiny:broken@1", str(tmp_path))


@pytest.fixture
async def engine(build_model: BuildModel) -> AsyncIterator[TorchEngine]:
    options = LoadOptions(kv_cache_tokens=4096, num_threads=1, max_num_seqs=32)
    made = TorchEngine(build_model("llama"), ByteCodec(), 256, options)
    yield made
    await made.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are read, in their order."""
    seen: list[Path] = []

    def record(folder: Path, layers: Mapping[str, LayerShape]) -> AdapterWeights:
        seen.append(folder)
        return read_adapter(folder, layers)

    monkeypatch.setattr(torch_model, "read_adapter", record)
    return seen


def request(name: str, adapter: AdapterRef | None = None, max_tokens: int = NUM_TOKENS) -> GenerationRequest:
    return GenerationRequest(name, PROMPT, SamplingParams(max_tokens=max_tokens, temperature=0.0), adapter)


async def read(engine: TorchEngine, wanted: GenerationRequest) -> list[int]:
    return [token for delta in [delta async for delta in engine.generate(wanted)] for token in delta.token_ids]


async def test_the_first_request_loads_the_adapter_and_all_share_it(
    engine: TorchEngine, adapter: PeftAdapter, reads: list[Path]
) -> None:
    base = await read(engine, request("base"))
    replies = await asyncio.gather(
        *(read(engine, request(f"tuned-{number}", adapter.ref)) for number in range(4)),
        *(read(engine, request(f"base-{number}")) for number in range(4)),
    )
    assert replies == [adapter.answer(PROMPT)] * 4 + [base] * 4
    assert adapter.answer(PROMPT) != base
    assert len(reads) == 1


async def test_an_adapter_is_loaded_while_others_answer(engine: TorchEngine, adapter: PeftAdapter) -> None:
    expected = await read(engine, request("alone", max_tokens=200))
    stream = engine.generate(request("long", max_tokens=200))
    tokens = list((await anext(stream)).token_ids)
    assert await read(engine, request("tuned", adapter.ref)) == adapter.answer(PROMPT)
    assert engine.stats().running == 1
    tokens += [token for delta in [delta async for delta in stream] for token in delta.token_ids]
    assert tokens == expected


async def test_a_request_whose_adapter_cannot_be_loaded_fails_alone(
    engine: TorchEngine, adapter: PeftAdapter, broken: AdapterRef
) -> None:
    base = await read(engine, request("base"))
    outcomes = await asyncio.gather(
        read(engine, request("broken", broken)),
        read(engine, request("tuned", adapter.ref)),
        read(engine, request("other")),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], ModelLoadError)
    assert "modules_to_save" in outcomes[0].message
    assert list(outcomes[1:]) == [adapter.answer(PROMPT), base]
    with pytest.raises(ModelLoadError, match="modules_to_save"):
        await engine.load_adapter(broken)


async def test_an_adapter_for_which_there_is_no_memory_fails_its_request_alone(
    engine: TorchEngine, adapter: PeftAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(EngineCore, "add_adapter", out_of_memory)
        outcomes = await asyncio.gather(
            read(engine, request("tuned", adapter.ref)), read(engine, request("base")), return_exceptions=True
        )
    assert isinstance(outcomes[0], ModelLoadError)
    assert isinstance(outcomes[1], list)
    assert await read(engine, request("again", adapter.ref)) == adapter.answer(PROMPT)


async def test_unused_adapters_give_way_and_come_back(
    engine: TorchEngine, adapter: PeftAdapter, reads: list[Path]
) -> None:
    many = [replace(adapter.ref, name=f"tiny:one@{number}") for number in range(MAX_ADAPTERS + 1)]
    expected = adapter.answer(PROMPT)
    for each in (*many, many[-1], many[0]):
        assert await read(engine, request("r", each)) == expected
    assert len(reads) == MAX_ADAPTERS + 2


async def test_a_removed_adapter_finishes_its_replies_and_is_read_anew_afterwards(
    engine: TorchEngine, adapter: PeftAdapter, reads: list[Path]
) -> None:
    stream = engine.generate(request("r", adapter.ref))
    tokens = list((await anext(stream)).token_ids)
    engine.remove_adapter(adapter.ref)
    tokens += [token for delta in [delta async for delta in stream] for token in delta.token_ids]
    assert tokens == adapter.answer(PROMPT)
    await read(engine, request("base", max_tokens=1))  # later in the same inbox, so the removal has been seen
    assert engine.stats().kv_tokens_cached <= 32  # the base's prompt alone
    await engine.load_adapter(adapter.ref)
    assert len(reads) == 2


async def test_leaving_and_aborting_while_the_adapter_is_loaded(
    engine: TorchEngine, adapter: PeftAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, in_a_thread = asyncio.Event(), asyncio.to_thread

    async def slow(*arguments: object) -> object:
        await gate.wait()
        return await in_a_thread(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "to_thread", slow)

    async def collect(wanted: GenerationRequest) -> list[GenerationDelta]:
        return [delta async for delta in engine.generate(wanted)]

    leaving, aborted, staying = (
        asyncio.create_task(collect(request(name, adapter.ref))) for name in ("leaving", "aborted", "staying")
    )
    await asyncio.sleep(0)
    leaving.cancel()
    engine.abort("aborted")
    gate.set()
    outcomes = await asyncio.gather(leaving, aborted, staying, return_exceptions=True)
    monkeypatch.undo()
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert isinstance(outcomes[1], list)
    assert [delta.finish_reason for delta in outcomes[1]] == ["abort"]
    assert isinstance(outcomes[2], list)
    assert [token for delta in outcomes[2] for token in delta.token_ids] == adapter.answer(PROMPT)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


async def test_closing_while_an_adapter_is_loaded_leaves_nobody_waiting(
    build_model: BuildModel, adapter: PeftAdapter
) -> None:
    engine = TorchEngine(build_model("llama"), ByteCodec(), 256, LoadOptions(kv_cache_tokens=2048, num_threads=1))
    waiting = asyncio.create_task(read(engine, request("r", adapter.ref)))
    await asyncio.sleep(0)
    await engine.close()
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await waiting
