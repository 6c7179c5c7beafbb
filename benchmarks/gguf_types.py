"""What each type of GGUF file costs and brings on llama.cpp: how well the model predicts, and how fast it replies.

    python benchmarks/gguf_types.py [--rounds 3]

Quality: the negative log-likelihood, in nats a token, of the answers in the held-out part of chatterbot-corpus (see
train.py), as the engine tells it: each token is forced by a bias, and logprobs are told before any bias. Speed: greedy
replies of 100 tokens at concurrency 1, 4 and 16. The contestants, our torch engine in float32 among them, take turns,
each in a process of its own.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path

from engine_throughput import NUM_TOKENS, prompt_texts
from own_process import in_own_process
from torch_engine_setup import embedded_model

CONTESTANTS = ("torch", "as_is", "f16", "mixed", "q8_0", "q4_0")
CONCURRENCIES = (1, 4, 16)
NUM_EXAMPLES = 60


def measure(folder: Path, contestant: str) -> dict[str, float]:
    from mini_claude.models.catalog import BUILTIN
    from mini_claude.runtime.loaded_model import LoadedModel, open_model
    from mini_claude.types import GenerationRequest, LoadOptions, Message, SamplingParams
    from mini_claude.utils.config import Settings
    from train import tokenized

    options = LoadOptions() if contestant == "torch" else LoadOptions(engine="llama_cpp", gguf_type=contestant)  # type: ignore[arg-type]

    async def logprob(model: LoadedModel, name: str, prompt: tuple[int, ...], target: int) -> float:
        params = SamplingParams(max_tokens=1, temperature=0.0, logit_bias={target: 1e4}, logprobs=0, ignore_eos=True)
        deltas = [delta async for delta in model.engine.generate(GenerationRequest(name, prompt, params))]
        (token,) = deltas[0].logprobs or ()
        assert token.token_id == target
        return token.logprob

    async def reply(model: LoadedModel, name: str, text: str) -> None:
        prompt = model.chat_model.render([Message("user", text)]).token_ids
        params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        num_tokens = 0
        async for delta in model.engine.generate(GenerationRequest(name, prompt, params)):
            num_tokens += len(delta.token_ids)
        assert num_tokens == NUM_TOKENS

    async def run() -> dict[str, float]:
        model = await asyncio.to_thread(open_model, BUILTIN[0], options, Settings())
        results: dict[str, float] = {}
        for concurrency in CONCURRENCIES:
            for number in range(2):  # once to warm up, with other texts
                texts = prompt_texts(2 * concurrency)[number * concurrency :][:concurrency]
                start = time.perf_counter()
                await asyncio.gather(*(reply(model, f"{concurrency} {number} {text}", text) for text in texts))
                results[f"tokens/s at {concurrency}"] = concurrency * NUM_TOKENS / (time.perf_counter() - start)
        logprobs = []
        for example in tokenized(folder, 0)[1][:NUM_EXAMPLES]:
            ids = example.token_ids
            ends = [end for end, supervised in enumerate(example.supervised) if supervised]
            logprobs += await asyncio.gather(*(logprob(model, f"{end}", ids[:end], ids[end]) for end in ends))
        await model.engine.close()
        return {**results, "nats a token": -statistics.fmean(logprobs)}

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", choices=CONTESTANTS)
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(measure(arguments.folder, arguments.contestant)))
        return
    folder = arguments.folder or embedded_model()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for number in range(arguments.rounds):
        for name in CONTESTANTS:
            rounds[name].append(in_own_process(__file__, str(folder), "--contestant", name))
            shown = "  ".join(f"{key} {value:.3f}" for key, value in rounds[name][-1].items())
            print(f"round {number + 1}: {name:<6} {shown}", flush=True)
    print("\nmedians, and ratios to torch")
    medians = {name: {key: statistics.median(r[key] for r in each) for key in each[0]} for name, each in rounds.items()}
    for name, values in medians.items():
        shown = "  ".join(f"{key} {value:.3f} ({value / medians['torch'][key]:.2f}x)" for key, value in values.items())
        print(f"{name:<6} {shown}")


if __name__ == "__main__":
    main()
