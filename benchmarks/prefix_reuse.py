"""Time to first token of the second turn of a long chat, against the first turn.

    python benchmarks/prefix_reuse.py [MODEL_FOLDER] [--prompt-tokens 1500] [--rounds 3]

The second turn's prompt begins with the first turn's prompt and reply, whose keys and values are still in the
cache. Each round is another chat, so that rounds do not help each other.
"""

import argparse
import asyncio
import statistics
import time
from pathlib import Path

from mini_claude.engine.torch_engine import TorchEngine
from mini_claude.types import GenerationRequest, Message, SamplingParams
from torch_engine_setup import embedded_model, load_engine


async def first_token(engine: TorchEngine, request: GenerationRequest) -> tuple[float, str, int]:
    """Seconds to the first delta, the reply, and the prompt tokens that came from the cache."""
    start = time.perf_counter()
    seconds, text, num_cached = 0.0, "", 0
    async for delta in engine.generate(request):
        seconds = seconds or time.perf_counter() - start
        text += delta.text
        num_cached = delta.usage.cached_tokens if delta.usage else 0
    return seconds, text, num_cached


async def run(folder: Path, num_prompt_tokens: int, num_rounds: int) -> None:
    chat_model, engine = load_engine(folder)
    params = SamplingParams(
        max_tokens=32, temperature=0.0, stop_token_ids=tuple(chat_model.stop_token_ids), stop=chat_model.stop_strings
    )
    firsts, seconds_ = [], []
    for number in range(num_rounds):
        story = f"Story {number}. " + "The fox looked at the river and thought of a new plan. "
        sentence = "Then the fox walked along the river, met another animal and asked it for advice. "
        messages = [Message("user", story)]
        while len(chat_model.render(messages).token_ids) < num_prompt_tokens:
            messages = [Message("user", messages[0].content + sentence)]
        prompt = chat_model.render(messages).token_ids
        first, reply, _ = await first_token(engine, GenerationRequest(f"{number}-1", prompt, params))
        messages += [Message("assistant", reply), Message("user", "What happened then?")]
        prompt = chat_model.render(messages).token_ids
        second, _, num_cached = await first_token(engine, GenerationRequest(f"{number}-2", prompt, params))
        print(f"first turn {first:.3f} s; second {second:.3f} s, {num_cached} of {len(prompt)} tokens cached")
        firsts.append(first)
        seconds_.append(second)
    print(f"second turn is {statistics.median(firsts) / statistics.median(seconds_):.1f}x faster to its first token")
    await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--prompt-tokens", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.folder or embedded_model(), arguments.prompt_tokens, arguments.rounds))


if __name__ == "__main__":
    main()
