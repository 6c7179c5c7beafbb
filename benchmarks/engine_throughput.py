"""Tokens per second of the torch engine against transformers on the same weights, prompts and number of tokens.

    python benchmarks/engine_throughput.py [MODEL_FOLDER] [--rounds 3]

Contestants, each in a process of its own, one after the other, in several rounds: the engine at concurrency 1 and
16 (requests arriving one by one), `generate` at 1 and as a static batch of 16, and transformers' own continuous
batching at 16. Each process warms up once and is measured once; medians over the rounds and ratios are printed.
"""

import argparse
import asyncio
import json
import resource
import statistics
import time
from pathlib import Path

from mini_claude.runtime.engine_process import ENGINE_ENVIRONMENT
from own_process import in_own_process
from torch_engine_setup import embedded_model

NUM_TOKENS = 100
CONTESTANTS = ("engine 1", "generate 1", "engine 16", "generate 16", "continuous batching 16")


def prompt_texts(num_prompts: int) -> list[str]:
    return [f"Write a long story number {i} about a fox and a river." for i in range(num_prompts)]


def measure_engine(folder: Path, concurrency: int) -> float:
    """Seconds for the second of two runs."""
    from mini_claude.types import GenerationRequest, Message, SamplingParams
    from torch_engine_setup import load_engine

    chat_model, engine = load_engine(folder)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)

    async def reply(request_id: str, text: str) -> None:
        token_ids = chat_model.render([Message("user", text)]).token_ids
        num_tokens = 0
        async for delta in engine.generate(GenerationRequest(request_id, token_ids, params)):
            num_tokens += len(delta.token_ids)
        assert num_tokens == NUM_TOKENS

    async def run() -> float:
        seconds = 0.0
        for number in range(2):
            # Other texts in the second run: nothing but the system prompt may come from the prefix cache.
            texts = prompt_texts(2 * concurrency)[number * concurrency :][:concurrency]
            start = time.perf_counter()
            await asyncio.gather(*(reply(f"{number}-{i}", text) for i, text in enumerate(texts)))
            seconds = time.perf_counter() - start
        await engine.close()
        return seconds

    return asyncio.run(run())


def measure_generate(folder: Path, concurrency: int) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    ids = tokenizer(rendered(tokenizer, concurrency), return_tensors="pt", padding=True, add_special_tokens=False)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        model.generate(**ids, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False)
        seconds = time.perf_counter() - start
    return seconds


def measure_continuous_batching(folder: Path, concurrency: int) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    generation = GenerationConfig(max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=2)
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered(tokenizer, concurrency)]
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        model.generate_batch(ids, generation_config=generation, continuous_batching_config=batching, progress_bar=False)
        seconds = time.perf_counter() - start
    return seconds


def rendered(tokenizer: object, num_prompts: int) -> list[str]:
    return [
        tokenizer.apply_chat_template(  # type: ignore[attr-defined]
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        for text in prompt_texts(num_prompts)
    ]


def measure(contestant: str, folder: Path) -> dict[str, float]:
    """Runs in the contestant's own process."""
    name, concurrency = contestant.rsplit(" ", 1)
    function = {
        "engine": measure_engine,
        "generate": measure_generate,
        "continuous batching": measure_continuous_batching,
    }[name]
    seconds = function(folder, int(concurrency))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # Linux gives KiB
    return {"tokens_per_second": int(concurrency) * NUM_TOKENS / seconds, "peak_mb": peak * 1.024}


def report(results: dict[str, list[dict[str, float]]]) -> None:
    speed = {
        name: statistics.median(result["tokens_per_second"] for result in rounds) for name, rounds in results.items()
    }
    for name, rounds in results.items():
        peak = max(result["peak_mb"] for result in rounds)
        print(f"{name:<24} {speed[name]:7.1f} tokens/s   peak {peak:5.0f} MB")
    for ours, theirs in (
        ("engine 1", "generate 1"),
        ("engine 16", "generate 16"),
        ("engine 16", "continuous batching 16"),
    ):
        print(f"{ours} / {theirs}: {speed[ours] / speed[theirs]:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", choices=CONTESTANTS)
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(measure(arguments.contestant, arguments.folder)))
        return
    folder = arguments.folder or embedded_model()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for number in range(arguments.rounds):
        for name in CONTESTANTS:
            environment = ENGINE_ENVIRONMENT if name.startswith("engine") else None
            result = in_own_process(__file__, str(folder), "--contestant", name, environment=environment)
            results[name].append(result)
            print(f"round {number + 1}: {name:<24} {result['tokens_per_second']:7.1f} tokens/s", flush=True)
    report(results)


if __name__ == "__main__":
    main()
