"""The echo engine keeps the protocol's promises."""

import asyncio

import pytest

from mini_claude.engine.echo_engine import EchoEngine
from mini_claude.errors import ContextLengthExceeded, InternalError, InvalidRequest, Overloaded
from mini_claude.models.echo_model import END_OF_TURN, ByteCodec
from mini_claude.types import GenerationDelta, GenerationRequest, LoadOptions, SamplingParams

CONTEXT = 64


def engine_with(options: LoadOptions | None = None) -> EchoEngine:
    return EchoEngine(ByteCodec(), CONTEXT, options or LoadOptions(engine="echo"))


def request_for(text: str, params: SamplingParams | None = None, request_id: str = "r") -> GenerationRequest:
    return GenerationRequest(request_id, tuple(text.encode()), params or SamplingParams())


async def deltas_of(engine: EchoEngine, request: GenerationRequest) -> list[GenerationDelta]:
    return [delta async for delta in engine.generate(request)]


def text_of(deltas: list[GenerationDelta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_repeats_the_prompt_once_and_ends_with_stop() -> None:
    deltas = await deltas_of(engine_with(), request_for("Grüße"))
    assert text_of(deltas) == "Grüße"
    assert [len(delta.token_ids) for delta in deltas] == [1] * 7
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].usage is not None
    assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (7, 7)
    assert all(delta.finish_reason is None and delta.usage is None for delta in deltas[:-1])


async def test_control_tokens_in_the_prompt_are_not_text() -> None:
    request = GenerationRequest("r", (72, END_OF_TURN, 105), SamplingParams(stop_token_ids=(END_OF_TURN,)))
    assert text_of(await deltas_of(engine_with(), request)) == "Hi"


async def test_max_tokens_ends_with_length() -> None:
    deltas = await deltas_of(engine_with(), request_for("hello", SamplingParams(max_tokens=3)))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("hel", "length")


async def test_ignore_eos_repeats_until_max_tokens() -> None:
    deltas = await deltas_of(engine_with(), request_for("ab", SamplingParams(max_tokens=5, ignore_eos=True)))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("ababa", "length")


async def test_without_max_tokens_the_rest_of_the_context_is_the_limit() -> None:
    deltas = await deltas_of(engine_with(), request_for("ab", SamplingParams(ignore_eos=True)))
    assert len(deltas) == CONTEXT - 2


async def test_stop_string_cuts_the_text_before_it() -> None:
    deltas = await deltas_of(engine_with(), request_for("one END two", SamplingParams(stop=("END",))))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("one ", "stop")


async def test_poison_fails_after_two_tokens_and_leaves_others_alone() -> None:
    engine = engine_with()
    received: list[GenerationDelta] = []

    async def poisoned() -> None:
        async for delta in engine.generate(request_for("poison", request_id="bad")):
            received.append(delta)

    good, bad = await asyncio.gather(
        deltas_of(engine, request_for("fine", request_id="good")), poisoned(), return_exceptions=True
    )
    assert isinstance(bad, InternalError)
    assert text_of(received) == "po"
    assert isinstance(good, list)
    assert text_of(good) == "fine"
    assert engine.stats().running == 0


async def test_abort_ends_the_reply_with_abort() -> None:
    engine = engine_with()
    deltas = []
    async for delta in engine.generate(request_for("hello", SamplingParams(max_tokens=50, ignore_eos=True))):
        deltas.append(delta)
        if len(deltas) == 3:
            engine.abort("r")
    assert len(deltas) == 4
    assert deltas[-1].finish_reason == "abort"
    assert engine.stats().kv_tokens_used == 0


async def test_a_waiting_request_can_be_aborted() -> None:
    engine = engine_with(LoadOptions(engine="echo", max_num_seqs=1))
    first = engine.generate(request_for("first", request_id="first"))
    await anext(first)
    waiting = asyncio.create_task(deltas_of(engine, request_for("second", request_id="second")))
    await asyncio.sleep(0)
    assert engine.stats().waiting == 1
    engine.abort("second")
    assert [delta.finish_reason for delta in await waiting] == ["abort"]
    await first.aclose()


async def test_a_consumer_that_leaves_frees_its_slot_for_the_next() -> None:
    engine = engine_with(LoadOptions(engine="echo", max_num_seqs=1))
    first = engine.generate(request_for("first", request_id="first"))
    await anext(first)
    second = asyncio.create_task(deltas_of(engine, request_for("second", request_id="second")))
    await asyncio.sleep(0)
    await first.aclose()
    assert text_of(await second) == "second"


async def test_a_full_queue_refuses_with_retry_after() -> None:
    engine = engine_with(LoadOptions(engine="echo", max_num_seqs=1, max_waiting=0))
    first = engine.generate(request_for("first", request_id="first"))
    await anext(first)
    with pytest.raises(Overloaded) as raised:
        engine.check(request_for("second", request_id="second"))
    assert raised.value.retry_after
    await first.aclose()
    engine.check(request_for("second", request_id="second"))


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (request_for(""), InvalidRequest, "prompt"),
        (request_for("a", SamplingParams(logit_bias={260: 1.0})), InvalidRequest, "logit_bias"),
        (request_for("a", SamplingParams(max_tokens=CONTEXT)), ContextLengthExceeded, "messages"),
        (request_for("a" * CONTEXT), ContextLengthExceeded, "messages"),
    ],
)
async def test_what_can_never_run_is_refused(
    request_: GenerationRequest, error: type[InvalidRequest], param: str
) -> None:
    with pytest.raises(error) as raised:
        await deltas_of(engine_with(), request_)
    assert raised.value.param == param


async def test_close_aborts_what_runs() -> None:
    engine = engine_with()
    stream = engine.generate(request_for("hello", SamplingParams(max_tokens=50, ignore_eos=True)))
    await anext(stream)
    await engine.close()
    assert [delta.finish_reason async for delta in stream] == ["abort"]
