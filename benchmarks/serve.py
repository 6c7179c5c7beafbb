"""Tokens per second, end to end: `mini-claude serve` over HTTP against llama.cpp and OpenVINO called directly.

    python benchmarks/serve.py [--rounds 3] [--types q8_0 q4_0] [--concurrencies 1 4 16 32] [--sampled] [--busy 0]

Everybody answers the same questions with 100 tokens each, from the same GGUF file, greedily or, `--sampled`, with
temperature 0.7 and top_p 0.9 (and what a peer does besides by itself: llama.cpp cuts to 40 candidates first). Ours is
the whole product: a client in a process of its own streams from /v1/chat/completions. A peer is called by its own
fastest interface, inside of its own process, with as many threads as there are questions. The contestants take turns;
each is warmed up once at each concurrency. `--busy` starts so many programs beside them that compute all the time, as
somebody's compiler does. Printed: tokens/s in all, ours divided by the peer's, and, for ours, the
time to the first token and between two. All questions come at once here; in benchmarks/crowd.py people come and go.
"""

import argparse
import asyncio
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from own_process import in_own_process

NUM_TOKENS = 100
TEMPERATURE, TOP_P = 0.7, 0.9  # with --sampled
START_SECONDS = 120.0


def batches(concurrency: int) -> list[list[str]]:
    """Questions to warm up with, and others to measure with: only the system prompt may come from a prefix cache."""
    texts = [f"Write a long story number {number} about a fox and a river." for number in range(2 * concurrency)]
    return [texts[:concurrency], texts[concurrency:]]


@contextlib.contextmanager
def busy_programs(number: int) -> Iterator[None]:
    """So many that compute for ever."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


# Ours: a server and a client.


@contextlib.contextmanager
def server(folder: Path, **settings: str) -> Iterator[str]:
    """`mini-claude serve` with a data directory of its own and the model in it; yields "127.0.0.1:port"."""
    with tempfile.TemporaryDirectory() as data_dir:
        models = Path(data_dir, "models")
        models.mkdir()
        shutil.copytree(folder, models / folder.name, symlinks=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        names = {"DATA_DIR": data_dir, "PORT": port} | {name.upper(): value for name, value in settings.items()}
        environment = os.environ | {f"MINI_CLAUDE_{name}": value for name, value in names.items()}
        command = [str(Path(sys.executable).with_name("mini-claude")), "serve"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Model and page: the page's process takes seconds of a core to start."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            models = httpx.get(f"{url}/api/v1/models", timeout=5.0).json()["models"]
            is_ready = any(model["state"] == "ready" for model in models)
            if is_ready and httpx.get(url, timeout=5.0).status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError("the server does not start")


async def streamed(
    address: str, text: str, key: str | None = None, *, sampled: bool = False, num_tokens: int = NUM_TOKENS
) -> list[float]:
    """When each event of a reply came. Reads no JSON: a client must not take what the server could use."""
    choice = {"temperature": TEMPERATURE, "top_p": TOP_P} if sampled else {"temperature": 0}
    body = json.dumps(
        {
            "model": "smollm2-135m",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": num_tokens,
            **choice,
            "logit_bias": {"0": -100, "2": -100},  # the tokens that would end a reply early
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    if key is not None:
        head += f"Authorization: Bearer {key}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    times: list[float] = []
    received = b""
    while chunk := await reader.read(65536):
        received += chunk
        times += [time.perf_counter()] * chunk.count(b'"content":"')
    writer.close()
    assert f'"completion_tokens":{num_tokens}'.encode() in received, received[-500:]
    return times


def measure_ours(address: str, concurrency: int, key: str | None, *, sampled: bool) -> dict[str, Any]:
    """As the client sees it, which is this process."""

    async def run(texts: list[str]) -> dict[str, Any]:
        start = time.perf_counter()
        times = await asyncio.gather(*(streamed(address, text, key, sampled=sampled) for text in texts))
        seconds = time.perf_counter() - start
        return {
            "tokens_per_second": NUM_TOKENS * len(texts) / seconds,
            "first_ms": [1e3 * (each[1] - start) for each in times],  # the first event has a role and no text
            "between_ms": [1e3 * (b - a) for each in times for a, b in itertools.pairwise(each[1:])],
        }

    return [asyncio.run(run(texts)) for texts in batches(concurrency)][-1]


# The peers.


def llama_cpp_peer(gguf: Path) -> Any:
    """xllamacpp's server, called without HTTP."""
    import psutil
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512 * 32, 32, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = psutil.cpu_count(logical=False) or 1
    return xllamacpp.Server(params)


def ask_llama_cpp(peer: Any, text: str, *, num_tokens: int = NUM_TOKENS, sampled: bool = False) -> None:
    """Return when the answer is there."""
    options: dict[str, Any] = {"max_tokens": num_tokens, "ignore_eos": True, "cache_prompt": True}
    options |= {"temperature": TEMPERATURE, "top_p": TOP_P} if sampled else {"temperature": 0}
    reply = peer.handle_chat_completions({"messages": [{"role": "user", "content": text}], **options})
    assert reply["usage"]["completion_tokens"] == num_tokens


def measure_llama_cpp(gguf: Path, concurrencies: list[int], *, sampled: bool) -> dict[str, float]:
    peer = llama_cpp_peer(gguf)
    results = {}
    for concurrency in concurrencies:
        for texts in batches(concurrency):
            start = time.perf_counter()
            with ThreadPoolExecutor(concurrency) as pool:
                list(pool.map(functools.partial(ask_llama_cpp, peer, sampled=sampled), texts))
            seconds = time.perf_counter() - start
        results[str(concurrency)] = NUM_TOKENS * concurrency / seconds
    return results


def openvino_peer(gguf: Path) -> Any:
    """Its continuous batching pipeline, with prefix caching."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 2, 64, 512
    scheduler.dynamic_split_fuse = scheduler.enable_prefix_caching = True
    return openvino_genai.ContinuousBatchingPipeline(str(gguf), scheduler, "CPU")


def openvino_config(*, num_tokens: int = NUM_TOKENS, sampled: bool = False) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = num_tokens
    config.ignore_eos, config.apply_chat_template = True, False
    if sampled:
        config.do_sample = True
        config.temperature, config.top_p = TEMPERATURE, TOP_P
    return config


def openvino_prompt(text: str) -> str:
    """As the chat template of the embedded model has it."""
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    return f"{system}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def measure_openvino(gguf: Path, concurrencies: list[int], *, sampled: bool) -> dict[str, float]:
    peer, config = openvino_peer(gguf), openvino_config(sampled=sampled)
    results = {}
    for concurrency in concurrencies:
        for texts in batches(concurrency):
            prompts = [openvino_prompt(text) for text in texts]
            start = time.perf_counter()
            peer.generate(prompts, [config] * concurrency)
            seconds = time.perf_counter() - start
        results[str(concurrency)] = NUM_TOKENS * concurrency / seconds
    return results


PEERS = {"llama.cpp": measure_llama_cpp, "openvino": measure_openvino}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def show(name: str, ours: dict[int, list[dict[str, Any]]], peer: list[dict[str, float]], peer_name: str) -> None:
    for concurrency, runs in ours.items():
        speed = statistics.median(run["tokens_per_second"] for run in runs)
        other = statistics.median(result[str(concurrency)] for result in peer)
        first = statistics.median(value for run in runs for value in run["first_ms"])
        between = [value for run in runs for value in run["between_ms"]]
        shares = " / ".join(f"{percentile(between, share):.0f}" for share in (0.5, 0.95, 0.99))
        print(
            f"{name:>6} at {concurrency:>2}: {speed:6.1f} tokens/s, {peer_name} {other:6.1f}, "
            f"ratio {speed / other:.2f}x; first token {first:.0f} ms; between two {shares} ms (p50/p95/p99)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_0"])
    parser.add_argument("--concurrencies", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--peer", nargs=2, metavar=("NAME", "GGUF"), help=argparse.SUPPRESS)
    parser.add_argument("--client", nargs=2, metavar=("ADDRESS", "CONCURRENCY"), help=argparse.SUPPRESS)
    parser.add_argument("--key", help=argparse.SUPPRESS)
    parser.add_argument("--busy", type=int, default=0, help="programs beside them that compute all the time")
    parser.add_argument("--sampled", action="store_true", help="draw tokens instead of taking the most probable one")
    arguments = parser.parse_args()
    if arguments.peer:
        measure = PEERS[arguments.peer[0]]
        print(json.dumps(measure(Path(arguments.peer[1]), arguments.concurrencies, sampled=arguments.sampled)))
        return
    if arguments.client:
        address, concurrency = arguments.client
        print(json.dumps(measure_ours(address, int(concurrency), arguments.key, sampled=arguments.sampled)))
        return
    # These import torch or take long, and a client needs nothing of them.
    from mini_claude.models.catalog import BUILTIN
    from mini_claude.runtime.served_gguf import served_gguf
    from mini_claude.types import LoadOptions
    from torch_engine_setup import embedded_model

    folder = embedded_model()
    concurrencies = [str(concurrency) for concurrency in arguments.concurrencies]
    flags = ["--sampled"] if arguments.sampled else []
    for gguf_type in arguments.types:
        served_gguf(BUILTIN[0], folder, folder.parent, LoadOptions(engine="llama_cpp", gguf_type=gguf_type))
        ours: dict[int, list[dict[str, Any]]] = {concurrency: [] for concurrency in arguments.concurrencies}
        peers: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            serving = server(folder, engine="llama_cpp", gguf_type=gguf_type)
            with serving as address, busy_programs(arguments.busy):
                for concurrency in arguments.concurrencies:
                    ours[concurrency].append(in_own_process(__file__, *flags, "--client", address, str(concurrency)))
            gguf = folder / f"{gguf_type}.gguf"
            files = {"llama.cpp": gguf} | ({"openvino": gguf} if importlib.util.find_spec("openvino_genai") else {})
            for name, gguf in files.items():
                command = [*flags, "--concurrencies", *concurrencies, "--peer", name, str(gguf)]
                with busy_programs(arguments.busy):
                    result = in_own_process(__file__, *command)
                peers.setdefault(name, []).append(result)
        for name, results in peers.items():
            show(gguf_type, ours, results, name)


if __name__ == "__main__":
    main()
