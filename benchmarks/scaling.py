"""How speed changes with the length of a context, and with the number of conversations that are open.

    python benchmarks/scaling.py [--plots FOLDER]

On `mini-claude serve` as it comes, over HTTP. A context: a prompt of so many tokens is read; another request with the
same one finds it in the cache, and speed is that of its tokens. Conversations: each has its first turn, then all take
their second, 16 at once. Plots are written as SVG files.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from mini_claude.terminal.line_plot import line_plot
from serve import server
from torch_engine_setup import embedded_model

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8064)
SESSIONS = (1, 4, 16, 64, 256)
AT_ONCE = 16
NUM_TOKENS = 32


async def stream(http: httpx.AsyncClient, path: str, body: dict[str, Any], mark: str) -> tuple[list[float], list[str]]:
    """Seconds from the request to each line that holds `mark`, and all lines."""
    start = time.perf_counter()
    times: list[float] = []
    lines: list[str] = []
    async with http.stream("POST", path, json=body) as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if mark in line:
                times.append(time.perf_counter() - start)
    assert times, lines
    return times, lines


async def measure_context(http: httpx.AsyncClient, num_tokens: int) -> dict[str, float]:
    chance = random.Random(num_tokens)
    prompt = [chance.randrange(100, 40_000) for _ in range(num_tokens)]
    body: dict[str, Any] = {
        "model": "smollm2-135m",
        "prompt": prompt,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    body["logit_bias"] = {"0": -100, "2": -100}  # the tokens that would end a reply early
    first, _ = await stream(http, "/v1/completions", body, '"text":')
    second, _ = await stream(http, "/v1/completions", body, '"text":')
    return {
        "prefill": num_tokens / first[0],
        "decode": 1 / statistics.median(after - before for before, after in pairwise(second)),
        "first_cached_ms": 1e3 * second[0],
    }


async def turn(http: httpx.AsyncClient, slots: asyncio.Semaphore, session_id: str, text: str) -> tuple[str, float]:
    """The session's id and the seconds to the first token."""
    body = {"session_id": session_id, "messages": [{"role": "user", "content": text}], "stream": True}
    body |= {"max_tokens": NUM_TOKENS, "temperature": 0}
    async with slots:
        times, lines = await stream(http, "/api/v1/chat/completions", body, '"number":')
    start = next(line for line in lines if line.startswith("data:"))
    return json.loads(start.removeprefix("data:"))["session_id"], times[0]


async def measure_chat(http: httpx.AsyncClient, num_turns: int) -> list[float]:
    """Seconds to the first token of each turn of one conversation."""
    slots, session_id, seconds = asyncio.Semaphore(1), "new", []
    for number in range(num_turns):
        text = f"Now tell me, in a sentence or two, what was so special about the year {1900 + 7 * number}, please."
        session_id, first = await turn(http, slots, session_id, text)
        seconds.append(first)
    return seconds


async def measure_sessions(http: httpx.AsyncClient, num_sessions: int) -> dict[str, float]:
    slots = asyncio.Semaphore(AT_ONCE)
    names = range(num_sessions)
    opened = await asyncio.gather(*(turn(http, slots, "new", f"I am person {name}. Who are you?") for name in names))
    start = time.perf_counter()
    second = await asyncio.gather(*(turn(http, slots, session_id, "And what do you like?") for session_id, _ in opened))
    seconds = time.perf_counter() - start
    return {"turns": num_sessions / seconds, "first_ms": 1e3 * statistics.median(first for _, first in second)}


async def measure(address: str) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]]]:
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=None, trust_env=False) as http:
        await measure_context(http, 100)
        contexts = {num_tokens: await measure_context(http, num_tokens) for num_tokens in CONTEXTS}
        turns = await measure_chat(http, 10)
        print(
            f"first token of the first turn {1e3 * turns[0]:.0f} ms, of the tenth {1e3 * turns[-1]:.0f} ms", flush=True
        )
        sessions = {num_sessions: await measure_sessions(http, num_sessions) for num_sessions in SESSIONS}
    return contexts, sessions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path, default=Path(__file__).parent / "plots")
    arguments = parser.parse_args()
    with server(embedded_model()) as address:
        contexts, sessions = asyncio.run(measure(address))
    for num_tokens, found in contexts.items():
        print(
            f"context of {num_tokens:>5} tokens: read at {found['prefill']:6.0f} tokens/s, "
            f"answered at {found['decode']:5.1f}; first token of the second request {found['first_cached_ms']:4.0f} ms"
        )
    for num_sessions, found in sessions.items():
        print(
            f"{num_sessions:>3} conversations: {found['turns']:5.1f} turns/s of up to {NUM_TOKENS} tokens; "
            f"first token of a second turn {found['first_ms']:4.0f} ms"
        )
    arguments.plots.mkdir(exist_ok=True)
    axis = "tokens of context"
    lines = {"read": [found["prefill"] for found in contexts.values()]}
    (arguments.plots / "prefill.svg").write_text(
        line_plot("Tokens read per second", axis, list(map(str, contexts)), lines)
    )
    lines = {"decode": [found["decode"] for found in contexts.values()]}
    (arguments.plots / "context.svg").write_text(line_plot("Tokens per second", axis, list(map(str, contexts)), lines))
    lines = {"turns/s": [found["turns"] for found in sessions.values()]}
    plot = line_plot("Turns per second", "open conversations", list(map(str, sessions)), lines)
    (arguments.plots / "sessions.svg").write_text(plot)


if __name__ == "__main__":
    main()
