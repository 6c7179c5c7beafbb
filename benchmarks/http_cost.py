"""What HTTP and the scheduler cost: tokens per second of the whole product, divided by those of its engine alone.

    python benchmarks/http_cost.py [--rounds 5] [--concurrencies 1 4 16 32]

The engine alone is called in a process of its own, by its Python interface: scheduler, sampler and detokenizer are in
it. The whole product is `mini-claude serve` with the client of benchmarks/serve.py, which shares the cores with it.
Both answer the same questions with 100 tokens each, with the default options, and take turns.

Printed: the medians, the ratio (the median of the rounds' own ratios), and how much processor time each process takes
for a token, from which follows what HTTP takes of the product's own time, the client left out. The scheduler's share is
that of the engine alone: the time of a step (`EngineCore.step`) without the model's (`StepModel.step`: llama.cpp and
the sampler; `CacheStorage`: copying keys and values), which is choosing what is read, counting, and making text of
tokens.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from own_process import in_own_process
from serve import NUM_TOKENS, batches, server
from startup import processes, role_of
from torch_engine_setup import embedded_model

MIN_REPLIES = 24  # the system counts processor time in hundredths of a second
SERVE = str(Path(__file__).with_name("serve.py"))


def timed(owner: type, *methods: str) -> list[float]:
    """The seconds of each call of these from now on."""
    seconds: list[float] = []

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds.append(time.perf_counter() - start)

        return call

    for name in methods:
        setattr(owner, name, wrap(getattr(owner, name)))
    return seconds


def measure_engine(concurrencies: list[int]) -> dict[str, tuple[float, float]]:
    """Tokens per second, and the scheduler's share of them, by concurrency."""
    from mini_claude.engine.engine_core import EngineCore
    from mini_claude.engine.llama_cpp_cache import LlamaCppCache
    from mini_claude.engine.llama_cpp_model import LlamaCppModel
    from mini_claude.models.catalog import BUILTIN
    from mini_claude.runtime.loaded_model import LoadedModel, open_model
    from mini_claude.types import GenerationRequest, Message, SamplingParams
    from mini_claude.utils.config import Settings

    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, logit_bias={0: -100.0, 2: -100.0})

    async def reply(model: LoadedModel, text: str) -> None:
        prompt = model.chat_model.render([Message("user", text)]).token_ids
        num_tokens = 0
        async for delta in model.engine.generate(GenerationRequest(text, prompt, params)):
            num_tokens += len(delta.token_ids)
        assert num_tokens == NUM_TOKENS

    async def run() -> dict[str, tuple[float, float]]:
        model = await asyncio.to_thread(open_model, BUILTIN[0], Settings().load_options(), Settings())
        whole, models = timed(EngineCore, "step"), timed(LlamaCppModel, "step")
        copying = timed(LlamaCppCache, "copy_prefix", "truncate", "free")
        results = {}
        for concurrency in concurrencies:
            for texts in batches(concurrency):
                for times in (whole, models, copying):
                    times.clear()
                start = time.perf_counter()
                await asyncio.gather(*(reply(model, text) for text in texts))
                seconds = time.perf_counter() - start
                scheduler = (sum(whole) - sum(models) - sum(copying)) / seconds
                results[str(concurrency)] = NUM_TOKENS * concurrency / seconds, scheduler
        await model.engine.close()
        return results

    return asyncio.run(run())


def seconds_by_role(address: str) -> dict[str, float]:
    """Processor time that the processes of this server have taken so far."""
    seconds: dict[str, float] = {}
    for process in processes("MINI_CLAUDE_PORT", address.rpartition(":")[2]):
        with contextlib.suppress(psutil.NoSuchProcess):
            role, times = role_of(process), process.cpu_times()
            seconds[role] = seconds.get(role, 0.0) + times.user + times.system
    return seconds


def measure_http(address: str, concurrency: int) -> tuple[float, dict[str, float]]:
    """Tokens per second, and microseconds of processor time a token by role."""
    client = (SERVE, "--client", address, str(concurrency))
    in_own_process(*client)  # what a server does only once
    num_runs = max(MIN_REPLIES // concurrency, 1)
    before = seconds_by_role(address)
    speeds = [in_own_process(*client)["tokens_per_second"] for _ in range(num_runs)]
    after = seconds_by_role(address)
    num_tokens = num_runs * NUM_TOKENS * len(batches(concurrency)) * concurrency
    microseconds = {role: 1e6 * (after[role] - before.get(role, 0.0)) / num_tokens for role in after}
    return statistics.median(speeds), microseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrencies", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        print(json.dumps(measure_engine(arguments.concurrencies)))
        return
    concurrencies = [str(concurrency) for concurrency in arguments.concurrencies]
    folder = embedded_model()
    engine: list[dict[str, tuple[float, float]]] = []
    http: list[dict[str, tuple[float, dict[str, float]]]] = []
    for _ in range(arguments.rounds):
        engine.append(in_own_process(__file__, "--engine", "--concurrencies", *concurrencies))
        with server(folder) as address:
            http.append({each: measure_http(address, int(each)) for each in concurrencies})
    for each in concurrencies:
        alone = statistics.median(measured[each][0] for measured in engine)
        scheduler = statistics.median(measured[each][1] for measured in engine)
        whole = statistics.median(measured[each][0] for measured in http)
        ratio = statistics.median(ours[each][0] / bare[each][0] for ours, bare in zip(http, engine, strict=True))
        print(f"at {each:>2}: {whole:7.1f} tokens/s over HTTP, {alone:7.1f} of the engine alone, ratio {ratio:.3f}")
        roles = {role for measured in http for role in measured[each][1]}
        times = {role: statistics.median(measured[each][1].get(role, 0.0) for measured in http) for role in roles}
        shown = ", ".join(f"{role} {times[role]:.0f}" for role in sorted(times))
        share = 1 - times["engine"] / sum(times.values())
        print(f"       us a token: {shown}; beside the engine's process {share:.1%}")
        print(f"       scheduler {scheduler:.1%}, with HTTP {share + scheduler:.1%}", flush=True)


if __name__ == "__main__":
    main()
