"""Tokens per second where people come and go: each asks again when the answer is there, and answers differ in length.

    python benchmarks/crowd.py [--rounds 3] [--types q8_0] [--concurrencies 4 16 32] [--only llama.cpp openvino]

benchmarks/serve.py lets everybody begin and end at once; here every answer that ends makes room for a question that is
read beside the others' answers. Contestants, interfaces and turns are those of benchmarks/serve.py, decoding is greedy.
Each of the people asks some questions one after the other, with 20 to 149 tokens for an answer, drawn from a fixed
seed, so all contestants do the same work. Printed: tokens/s from the first question to the last answer, and ours
divided by the peer's.
"""

import argparse
import asyncio
import importlib.util
import itertools
import json
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from own_process import in_own_process
from serve import ask_llama_cpp, llama_cpp_peer, openvino_config, openvino_peer, openvino_prompt, server, streamed

NUM_QUESTIONS = 5  # of each
LENGTHS = range(20, 150)

Crowd = list[list[tuple[str, int]]]  # of each what is asked, and how many tokens the answer has


def crowds(concurrency: int) -> list[Crowd]:
    """One to warm up with, and another one to measure with."""

    def crowd(name: str, num_questions: int) -> Crowd:
        draw = random.Random(f"{name} {concurrency}")
        return [
            [
                (f"{name} {number} of {person}: what happens to the fox at the river?", draw.choice(LENGTHS))
                for number in range(num_questions)
            ]
            for person in range(concurrency)
        ]

    return [crowd("Chapter", 1), crowd("Page", NUM_QUESTIONS)]


def measure_ours(address: str, crowd: Crowd) -> None:
    async def person(questions: list[tuple[str, int]]) -> None:
        for text, num_tokens in questions:
            await streamed(address, text, num_tokens=num_tokens)

    async def run() -> None:
        await asyncio.gather(*(person(questions) for questions in crowd))

    asyncio.run(run())


def measure_llama_cpp(peer: Any, crowd: Crowd) -> None:
    def person(questions: list[tuple[str, int]]) -> None:
        for text, num_tokens in questions:
            ask_llama_cpp(peer, text, num_tokens=num_tokens)

    with ThreadPoolExecutor(len(crowd)) as pool:
        list(pool.map(person, crowd))


def measure_openvino(peer: Any, crowd: Crowd) -> None:
    from openvino_genai.py_openvino_genai import GenerationStatus

    names = itertools.count()

    def ask(questions: list[tuple[str, int]]) -> tuple[Any, list[tuple[str, int]]]:
        """The first of them; returned are its handle and the others."""
        (text, num_tokens), *others = questions
        config = openvino_config(num_tokens=num_tokens)
        return peer.add_request(next(names), openvino_prompt(text), config), others

    running = [ask(questions) for questions in crowd]
    while running:
        peer.step()
        for person, (handle, questions) in reversed(tuple(enumerate(running))):
            if handle.get_status() == GenerationStatus.FINISHED:
                running[person : person + 1] = [ask(questions)] if questions else []


PEERS = {"llama.cpp": (llama_cpp_peer, measure_llama_cpp), "openvino": (openvino_peer, measure_openvino)}


def speed(run: Any, contestant: Any, concurrency: int) -> float:
    """Tokens per second of the second crowd."""
    warm_up, crowd = crowds(concurrency)
    run(contestant, warm_up)
    start = time.perf_counter()
    run(contestant, crowd)
    return sum(num_tokens for questions in crowd for _, num_tokens in questions) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--types", nargs="+", default=["q8_0"])
    parser.add_argument("--concurrencies", nargs="+", type=int, default=[4, 16, 32])
    parser.add_argument("--only", nargs="*", choices=PEERS, default=list(PEERS), help="of the peers")
    parser.add_argument("--peer", nargs=2, metavar=("NAME", "GGUF"), help=argparse.SUPPRESS)
    parser.add_argument("--client", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        start, run = PEERS[arguments.peer[0]]
        peer = start(Path(arguments.peer[1]))
        print(json.dumps([speed(run, peer, concurrency) for concurrency in arguments.concurrencies]))
        return
    if arguments.client:
        print(json.dumps([speed(measure_ours, arguments.client, each) for each in arguments.concurrencies]))
        return
    # These import torch or take long, and a client needs nothing of them.
    from mini_claude.models.catalog import BUILTIN
    from mini_claude.runtime.served_gguf import served_gguf
    from mini_claude.types import LoadOptions
    from torch_engine_setup import embedded_model

    folder = embedded_model()
    concurrencies = ["--concurrencies", *map(str, arguments.concurrencies)]
    peers = [name for name in arguments.only if name != "openvino" or importlib.util.find_spec("openvino_genai")]
    for gguf_type in arguments.types:
        served_gguf(BUILTIN[0], folder, folder.parent, LoadOptions(engine="llama_cpp", gguf_type=gguf_type))
        ours: list[list[float]] = []
        theirs: dict[str, list[list[float]]] = {name: [] for name in peers}
        for _ in range(arguments.rounds):
            with server(folder, engine="llama_cpp", gguf_type=gguf_type) as address:
                ours.append(in_own_process(__file__, *concurrencies, "--client", address))
            for name, results in theirs.items():
                gguf = str(folder / f"{gguf_type}.gguf")
                results.append(in_own_process(__file__, *concurrencies, "--peer", name, gguf))
        for index, concurrency in enumerate(arguments.concurrencies):
            own = statistics.median(result[index] for result in ours)
            others = {name: statistics.median(result[index] for result in results) for name, results in theirs.items()}
            shown = "; ".join(f"{name} {other:6.1f}, ratio {own / other:.2f}x" for name, other in others.items())
            print(f"{gguf_type:>6} at {concurrency:>2}: {own:6.1f} tokens/s; {shown}", flush=True)


if __name__ == "__main__":
    main()
