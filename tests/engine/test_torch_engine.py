"""The engine behind its protocol: streams, aborts, faults of one request, refusals, stop strings, closing."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mini_claude.engine import sampler
from mini_claude.engine.sampler import Sampler
from mini_claude.engine.sequence import Sequence
from mini_claude.engine.torch_engine import TorchEngine
from mini_claude.errors import (
    ContextLengthExceeded,
    InternalError,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    Unavailable,
)
from mini_claude.models.echo_model import ByteCodec
from mini_claude.types import GenerationDelta, GenerationRequest, LoadOptions, SamplingParams

CONTEXT = 256
BuildModel = Callable[[str], PreTrainedModel]


@pytest.fixture
async def engine(build_model: BuildModel) -> AsyncIterator[TorchEngine]:
    options = LoadOptions(kv_cache_tokens=2048, num_threads=1, max_num_seqs=8, max_waiting=2)
    made = TorchEngine(build_model("llama"), ByteCodec(), CONTEXT, options)
    yield made
    await made.close()


def request(name: str = "r", *, prompt: tuple[int, ...] = (72, 105), **params: object) -> GenerationRequest:
    settings: dict[str, object] = {"temperature": 0.0, "max_tokens": 24} | params
    return GenerationRequest(name, prompt, SamplingParams(**settings))  # type: ignore[arg-type]


async def read(engine: TorchEngine, wanted: GenerationRequest) -> list[GenerationDelta]:
    return [delta async for delta in engine.generate(wanted)]


def text(deltas: list[GenerationDelta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_the_last_delta_alone_has_reason_and_usage(engine: TorchEngine) -> None:
    deltas = await read(engine, request())
    assert [delta.finish_reason for delta in deltas] == [None] * 23 + ["length"]
    usage = deltas[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 24)


async def test_one_failing_request_leaves_its_31_neighbours_unchanged(
    build_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LoadOptions(kv_cache_tokens=2048, num_threads=1, max_num_seqs=32)
    engine = TorchEngine(build_model("llama"), ByteCodec(), CONTEXT, options)
    wanted = [request(f"r{number}", prompt=(65 + number, 66)) for number in range(32)]
    healthy = [text(await read(engine, each)) for each in wanted]

    def poisoned(row: torch.Tensor, sequence: Sequence) -> None:
        if sequence.request.request_id == "r3" and sequence.num_generated == 5:
            raise RuntimeError(f"row of {len(row)} scores")

    monkeypatch.setattr(sampler, "_penalize", poisoned)
    outcomes = await asyncio.gather(*(read(engine, each) for each in wanted), return_exceptions=True)
    assert isinstance(outcomes[3], InternalError)
    texts = [text(outcome) for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert texts == [each for number, each in enumerate(healthy) if number != 3]
    await engine.close()


async def test_a_model_that_fails_fails_its_requests_and_the_engine_goes_on(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = text(await read(engine, request()))
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", lambda *_: 1 / 0)
        with pytest.raises(InternalError):
            await read(engine, request())
    assert engine.stats().running == 0
    assert text(await read(engine, request())) == expected


async def test_closing_the_stream_aborts_and_the_cache_is_back_at_its_baseline(engine: TorchEngine) -> None:
    stream = engine.generate(request(max_tokens=200))
    await anext(stream)
    await stream.aclose()
    await read(engine, request("next", max_tokens=1))  # later in the same inbox, so the abort has been seen
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)
    assert stats.generated_tokens_total < 100


async def test_abort_ends_a_reply_with_that_reason(engine: TorchEngine) -> None:
    stream = engine.generate(request(max_tokens=200))
    await anext(stream)
    engine.abort("r")
    assert [delta.finish_reason async for delta in stream][-1] == "abort"


async def test_a_stop_string_ends_the_reply_before_it_and_no_part_of_it_is_shown(engine: TorchEngine) -> None:
    whole = text(await read(engine, request()))
    stop = whole[6:9]
    deltas = await read(engine, request(stop=(stop,)))
    assert deltas[-1].finish_reason == "stop"
    assert text(deltas) == whole[: whole.index(stop)]


async def test_a_stop_token_ends_the_reply_and_is_no_text(engine: TorchEngine) -> None:
    token_ids = [token for delta in await read(engine, request()) for token in delta.token_ids]
    stop = token_ids[4]
    deltas = await read(engine, request(stop_token_ids=(stop,)))
    assert deltas[-1].finish_reason == "stop"
    assert [token for delta in deltas for token in delta.token_ids] == token_ids[: token_ids.index(stop)]
    endless = await read(engine, request(stop_token_ids=(stop,), ignore_eos=True))
    assert [token for delta in endless for token in delta.token_ids] == token_ids


async def test_the_same_seed_gives_the_same_text_whoever_else_is_there(engine: TorchEngine) -> None:
    alone = text(await read(engine, request(temperature=1.0, seed=5)))
    others = [read(engine, request(f"o{number}", temperature=1.0, seed=number)) for number in range(6)]
    same, *_ = await asyncio.gather(read(engine, request(temperature=1.0, seed=5)), *others)
    assert text(same) == alone


async def test_what_cannot_work_is_refused_before_it_is_queued(engine: TorchEngine) -> None:
    with pytest.raises(ContextLengthExceeded, match="256"):
        engine.check(request(max_tokens=255))
    with pytest.raises(InvalidRequest):
        engine.check(request(prompt=()))
    with pytest.raises(InvalidRequest, match="logit_bias"):
        engine.check(request(logit_bias={999: 1.0}))


async def test_a_full_queue_refuses_with_a_time_to_come_back(engine: TorchEngine) -> None:
    streams = [engine.generate(request(f"r{number}", max_tokens=200)) for number in range(10)]
    firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.sleep(0)  # every stream has queued its request
    with pytest.raises(Overloaded) as caught:
        engine.check(request("one too many"))
    assert caught.value.retry_after
    for number in range(10):
        engine.abort(f"r{number}")
    await asyncio.gather(*firsts)
    for stream in streams:
        await stream.aclose()


async def test_closing_ends_running_replies_and_refuses_new_ones(build_model: BuildModel) -> None:
    engine = TorchEngine(build_model("llama"), ByteCodec(), CONTEXT, LoadOptions(kv_cache_tokens=2048, num_threads=1))
    stream = engine.generate(request(max_tokens=200))
    await anext(stream)
    await engine.close()
    assert [delta.finish_reason async for delta in stream][-1] == "abort"
    with pytest.raises(Unavailable):
        engine.check(request())


@pytest.mark.parametrize("architecture", ["mamba", "bloom"])
def test_a_model_whose_state_this_engine_cannot_keep_is_refused(architecture: str) -> None:
    config = AutoConfig.for_model(
        architecture, vocab_size=260, hidden_size=32, num_hidden_layers=2, n_head=4, n_layer=2
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelLoadError, match="cannot run on this engine"):
        TorchEngine(model, ByteCodec(), CONTEXT, LoadOptions(num_threads=1))
