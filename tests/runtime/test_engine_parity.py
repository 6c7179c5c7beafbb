"""Both engines on the embedded model: the same prompts, and the same log-probabilities as far as rounding allows."""

import asyncio
import statistics
from pathlib import Path

import pytest

from mini_claude.engine.engine import Engine
from mini_claude.engine.engine_core import EngineCore, RequestFailure
from mini_claude.engine.llama_cpp_engine import LlamaCppEngine
from mini_claude.engine.llama_cpp_library import llama_cpp_library
from mini_claude.engine.llama_cpp_model import LlamaCppModel
from mini_claude.engine.torch_engine import TorchEngine
from mini_claude.models.causal_lm import CausalLM
from mini_claude.models.materialize import source_gguf
from mini_claude.models.weights import load_weights
from mini_claude.training.merged_gguf import GGUFTemplate
from mini_claude.types import GenerationRequest, LoadOptions, Message, SamplingParams

PROMPTS = (
    "Name the capital of France.",
    "Write a poem about the sea, please.",
    "def fibonacci(n):",
    "¿Qué hora es? 🦊 Antworte bitte auf Deutsch.",
    "List three fruits, and why a doctor may recommend each of them to somebody who cannot sleep at night.",
)
NUM_TOKENS = 24
NUM_TOP = 5
_Top = list[dict[int, float]]  # of each generated token: the most probable ones and their logprobs


async def _replies(
    engine: Engine, model: CausalLM, forced: dict[str, tuple[int, ...]] | None = None
) -> dict[str, _Top]:
    """Greedy replies to all prompts at once; or, position by position, what follows the tokens that are `forced`."""
    params = SamplingParams(
        max_tokens=NUM_TOKENS if forced is None else 1, temperature=0.0, logprobs=NUM_TOP, ignore_eos=True
    )

    async def ask(name: str, token_ids: tuple[int, ...]) -> _Top:
        deltas = [delta async for delta in engine.generate(GenerationRequest(name, token_ids, params))]
        tokens = [token for delta in deltas for token in delta.logprobs or ()]
        return [{top.token_id: top.logprob for top in token.top} for token in tokens]

    async def continued(prompt: str, token_ids: tuple[int, ...]) -> _Top:
        if forced is None:
            return await ask(prompt, token_ids)
        ends = range(NUM_TOKENS)
        return [(await ask(f"{prompt} {end}", (*token_ids, *forced[prompt][:end])))[0] for end in ends]

    prompts = {prompt: model.render([Message("user", prompt)]).token_ids for prompt in PROMPTS}
    return dict(zip(prompts, await asyncio.gather(*(continued(*item) for item in prompts.items())), strict=True))


def _differences(one: dict[str, _Top], other: dict[str, _Top]) -> list[float]:
    """Of the log-probabilities of tokens that both name."""
    return [
        abs(a[token] - b[token])
        for prompt in PROMPTS
        for a, b in zip(one[prompt], other[prompt], strict=True)
        for token in a.keys() & b.keys()
    ]


def _likeliest(top: dict[int, float]) -> int:
    return max(top, key=lambda token: top[token])


@pytest.mark.real_model
async def test_the_engines_agree_on_real_prompts(smollm2_folder: Path, tmp_path: Path) -> None:
    model = CausalLM.from_folder("smollm2-135m", smollm2_folder)
    template = GGUFTemplate(source_gguf(smollm2_folder))
    options = LoadOptions(device="cpu")
    weights = await asyncio.to_thread(load_weights, smollm2_folder, options)
    torch_engine = TorchEngine(weights, model.codec, model.context_length, options)
    greedy = await _replies(torch_engine, model)
    await torch_engine.close()
    forced = {prompt: tuple(_likeliest(top) for top in tops) for prompt, tops in greedy.items()}
    found = {}
    for kind in ("f32", "q8_0"):
        template.write(smollm2_folder, None, tmp_path / kind, kind)
        engine = LlamaCppEngine(tmp_path / kind, model.codec, model.context_length, options)
        found[kind] = await _replies(engine, model, forced)
        await engine.close()
    assert max(_differences(greedy, found["f32"])) < 0.03  # keys and values are in 16 bits
    assert statistics.fmean(_differences(greedy, found["q8_0"])) < 0.15
    pairs = [pair for prompt in PROMPTS for pair in zip(greedy[prompt], found["q8_0"][prompt], strict=True)]
    assert statistics.fmean(_likeliest(a) == _likeliest(b) for a, b in pairs) > 0.9


@pytest.mark.real_model
async def test_no_score_depends_on_the_threads_where_their_number_follows_the_load(
    smollm2_folder: Path, tmp_path: Path
) -> None:
    model = CausalLM.from_folder("smollm2-135m", smollm2_folder)
    GGUFTemplate(source_gguf(smollm2_folder)).write(smollm2_folder, None, tmp_path / "model", "q8_0")
    replies = []
    for num_threads in (1, 2):
        options = LoadOptions(device="cpu", num_threads=num_threads)
        engine = LlamaCppEngine(tmp_path / "model", model.codec, model.context_length, options)
        replies.append(await _replies(engine, model))
        await engine.close()
    assert replies[0] == replies[1] or not llama_cpp_library().is_steady


@pytest.mark.real_model
def test_no_score_depends_on_who_is_there_or_was_there_before(smollm2_folder: Path, tmp_path: Path) -> None:
    """One long text among short ones: all share a pool, where new tokens come into cells before those of older ones."""
    model = CausalLM.from_folder("smollm2-135m", smollm2_folder)
    GGUFTemplate(source_gguf(smollm2_folder)).write(smollm2_folder, None, tmp_path / "model", "q8_0")
    options = LoadOptions(device="cpu", num_threads=2)
    long = "Summarise it: " + " ".join(f"Sentence {number} is about topic {number * 7 % 13}." for number in range(120))
    crowd = [long, *(f"Tell me {number} facts." for number in range(9))]

    def new_core() -> EngineCore:
        step_model = LlamaCppModel(tmp_path / "model", model.codec.vocab_size, options)
        return EngineCore(step_model, model.codec, model.context_length, options)

    def read(core: EngineCore, *prompts: str) -> dict[str, list[float]]:
        params = SamplingParams(max_tokens=5, temperature=0.0, logprobs=1, ignore_eos=True)
        for prompt in prompts:
            core.add(GenerationRequest(prompt, model.render([Message("user", prompt)]).token_ids, params))
        scores: dict[str, list[float]] = {prompt: [] for prompt in prompts}
        while not core.is_idle:
            for output in core.step():
                assert not isinstance(output, RequestFailure), output
                scores[output.request_id] += [token.logprob for token in output.logprobs or ()]
        return scores

    alone = {prompt: read(new_core(), prompt)[prompt] for prompt in (long, crowd[3], *PROMPTS)}
    core = new_core()
    together = read(core, *crowd)
    assert core.model.storage.layout.is_shared  # type: ignore[attr-defined]
    later = {prompt: read(core, prompt)[prompt] for prompt in PROMPTS}
    found = {prompt: together[prompt] for prompt in (long, crowd[3])} | later
    assert found == alone or not llama_cpp_library().is_steady
