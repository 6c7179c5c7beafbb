"""Tokens per second of the torch engine on a GPU, against transformers' continuous batching and the memory's bandwidth.

    python benchmarks/gpu_throughput.py [--rounds 3] [--kv-cache-tokens 131072]
    python benchmarks/gpu_throughput.py --tiny        # tries the script itself on a CPU; its numbers mean nothing

The workload is that of nano-vllm's benchmark: 256 requests at once with 100 to 1,024 tokens in and as many out, drawn
by seed 0, on a model with the shape of Qwen3-0.6B and random weights in bfloat16. Then one request alone, next to the
bound that a decoded token sets: all weights are read once. Contestants take turns, each in a process of its own,
which does everything twice and is measured the second time. LoRA training against TRL: benchmarks/train.py, which
takes the GPU where there is one.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, Qwen3Config

from mini_claude.engine.torch_engine import TorchEngine
from mini_claude.models.base_model import TextCodec
from mini_claude.types import GenerationRequest, LoadOptions, SamplingParams

CONTESTANTS = ("engine", "continuous batching", "engine alone")
CONTEXT_LENGTH = 4096
NUM_COPIED_BYTES = 2**30


@dataclass(frozen=True)
class Scale:
    """How large the work is."""

    config: Qwen3Config
    device: torch.device
    num_requests: int
    shortest: int
    longest: int
    max_num_seqs: int
    max_num_batched_tokens: int


FULL = Scale(
    Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
    ),
    torch.device("cuda"),
    num_requests=256,
    shortest=100,
    longest=1024,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
)
TINY = Scale(
    Qwen3Config(
        vocab_size=500,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
    ),
    torch.device("cpu"),
    num_requests=6,
    shortest=5,
    longest=20,
    max_num_seqs=4,
    max_num_batched_tokens=64,
)


class NumberCodec(TextCodec):
    """Each token is its number: random weights have no words."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(f" {token_id}" for token_id in token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return f" {token_id}".encode()


def workload(scale: Scale) -> list[tuple[list[int], int]]:
    """(prompt, tokens to generate) of each request."""
    chance = random.Random(0)
    lengths = range(scale.shortest, scale.longest + 1)
    return [
        ([chance.randrange(scale.config.vocab_size) for _ in range(chance.choice(lengths))], chance.choice(lengths))
        for _ in range(scale.num_requests)
    ]


def random_model(scale: Scale) -> PreTrainedModel:
    torch.manual_seed(0)
    with scale.device:
        model = AutoModelForCausalLM.from_config(scale.config, dtype=torch.bfloat16)
    return model.requires_grad_(False).eval()


def measure_engine(scale: Scale, requests: list[tuple[list[int], int]], kv_cache_tokens: int) -> dict[str, float]:
    options = LoadOptions(
        kv_cache_tokens=kv_cache_tokens,
        max_num_seqs=scale.max_num_seqs,
        max_num_batched_tokens=scale.max_num_batched_tokens,
        max_waiting=scale.num_requests,
    )
    with ThreadPoolExecutor(1) as loader:  # as an engine process does: torch is used by one living thread
        model = loader.submit(random_model, scale).result()
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    engine = TorchEngine(model, NumberCodec(scale.config.vocab_size), CONTEXT_LENGTH, options)

    async def reply(request_id: str, prompt: list[int], num_tokens: int) -> None:
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        got = 0
        async for delta in engine.generate(GenerationRequest(request_id, tuple(prompt), params)):
            got += len(delta.token_ids)
        assert got == num_tokens

    async def run() -> float:
        seconds = 0.0
        for number in range(2):
            # Other prompts in the second run: nothing may come from the prefix cache.
            prompts = [[(token_id + number) % scale.config.vocab_size for token_id in prompt] for prompt, _ in requests]
            start = time.perf_counter()
            await asyncio.gather(
                *(reply(f"{number}-{i}", prompts[i], num_tokens) for i, (_, num_tokens) in enumerate(requests))
            )
            seconds = time.perf_counter() - start
        await engine.close()
        return seconds

    return {"seconds": asyncio.run(run()), "model_bytes": num_bytes}


def measure_continuous_batching(scale: Scale, requests: list[tuple[list[int], int]]) -> dict[str, float]:
    torch.set_grad_enabled(False)
    model = random_model(scale)
    model.set_attn_implementation("sdpa")  # it takes the paged form of it, or FlashAttention where that is installed
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=scale.longest)
    batching = ContinuousBatchingConfig(
        max_batch_tokens=scale.max_num_batched_tokens, num_blocks=None if scale.device.type == "cuda" else 64
    )
    seconds = 0.0
    with model.continuous_batching_context_manager(generation, continuous_batching_config=batching) as batch:
        for number in range(2):
            start = time.perf_counter()
            for prompt, num_tokens in requests:
                shifted = [(token_id + number) % scale.config.vocab_size for token_id in prompt]
                batch.add_request(shifted, max_new_tokens=num_tokens, eos_token_id=-1)
            num_tokens = 0
            for _ in requests:
                while (result := batch.get_result(timeout=1)) is None:
                    assert batch.is_running()
                num_tokens += len(result.generated_tokens)
            assert num_tokens == sum(wanted for _, wanted in requests)
            seconds = time.perf_counter() - start
    return {"seconds": seconds}


def copied_bytes_per_second(device: torch.device) -> float:
    """What the memory gives: a copy reads and writes; the best of ten."""
    source = torch.ones(NUM_COPIED_BYTES if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * source.numel() / min(times)


def measure(contestant: str, scale: Scale, kv_cache_tokens: int) -> dict[str, float]:
    """Runs in the contestant's own process."""
    requests = workload(scale)
    if contestant == "engine alone":
        requests = [(requests[0][0], scale.longest)]
    if contestant == "continuous batching":
        result = measure_continuous_batching(scale, requests)
    else:
        result = measure_engine(scale, requests, kv_cache_tokens)
    result["tokens_per_second"] = sum(num_tokens for _, num_tokens in requests) / result["seconds"]
    if contestant == "engine alone":
        result["bound"] = copied_bytes_per_second(scale.device) / result["model_bytes"]
    return result


def measure_apart(contestant: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--contestant", contestant]
    command += ["--kv-cache-tokens", str(arguments.kv_cache_tokens), *(["--tiny"] if arguments.tiny else [])]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def report(results: dict[str, list[dict[str, float]]]) -> None:
    speed = {n: statistics.median(result["tokens_per_second"] for result in rounds) for n, rounds in results.items()}
    for name, tokens_per_second in speed.items():
        print(f"{name:<24} {tokens_per_second:9.1f} tokens/s")
    print(f"engine / continuous batching: {speed['engine'] / speed['continuous batching']:.2f}x")
    bound = statistics.median(result["bound"] for result in results["engine alone"])
    print(f"engine alone: {speed['engine alone'] / bound:.0%} of the {bound:.1f} tokens/s that the memory allows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-cache-tokens", type=int, default=131072)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--contestant", choices=CONTESTANTS)
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA GPU, and torch finds none; --tiny tries the script itself on a CPU.")
    if arguments.contestant:
        print(json.dumps(measure(arguments.contestant, TINY if arguments.tiny else FULL, arguments.kv_cache_tokens)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for number in range(arguments.rounds):
        for name in CONTESTANTS:
            results[name].append(measure_apart(name, arguments))
            print(f"round {number + 1}: {name:<24} {results[name][-1]['tokens_per_second']:9.1f} tokens/s", flush=True)
    report(results)


if __name__ == "__main__":
    main()
