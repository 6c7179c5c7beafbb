"""Seconds from `mini-claude serve` to the first token of a reply, and the memory of the product when it then rests.

    python benchmarks/startup.py [--rounds 5]

First the very first start, in an empty data directory, which makes the model's files; then some later ones. A client
asks from the first moment until it is answered.
Memory is the proportional set size (PSS), in which a page that processes share counts once; resident sizes beside it.
"""

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROLES = {
    "runtime.supervisor": "supervisor",
    "runtime.engine_server": "engine",
    "web.page.server": "page",
    " serve": "API worker",
}
SETTLE_SECONDS = 3.0  # what a start leaves behind is given back by then


def first_token(url: str, start: float) -> float:
    """Seconds from `start` until a reply shows its first words."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Name a colour."}],
        "stream": True,
        "max_tokens": 8,
    }
    while time.perf_counter() < start + 120:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", f"{url}/api/v1/chat/completions", json=body, timeout=120.0) as response,
        ):
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("event: delta"):
                    return time.perf_counter() - start
        time.sleep(0.02)
    raise RuntimeError("no reply came")


def processes(variable: str, value: str) -> list[psutil.Process]:
    """Those that have this in their environment, as all of one server have its data directory and its port."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value:
                found.append(process)
    return found


def role_of(process: psutil.Process) -> str:
    """What it is in the product."""
    command = " ".join(process.cmdline())
    return next((role for part, role in ROLES.items() if part in command), command[-40:])


def memory(data_dir: str) -> dict[str, tuple[float, float]]:
    """PSS and RSS in megabytes, by role."""
    sizes: dict[str, tuple[float, float]] = {}
    for process in processes("MINI_CLAUDE_DATA_DIR", data_dir):
        info = process.memory_full_info()
        sizes[role_of(process)] = (info.pss / 1e6, info.rss / 1e6)
    return sizes


def measure(data_dir: str) -> tuple[float, dict[str, tuple[float, float]]]:
    """Seconds to the first token, and `memory` when it rests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MINI_CLAUDE_DATA_DIR": data_dir, "MINI_CLAUDE_PORT": str(port)}
    command = [str(Path(sys.executable).with_name("mini-claude")), "serve"]
    start = time.perf_counter()
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        seconds = first_token(f"http://127.0.0.1:{port}", start)
        time.sleep(SETTLE_SECONDS)
        return seconds, memory(data_dir)
    finally:
        running = processes("MINI_CLAUDE_DATA_DIR", data_dir)
        server.terminate()
        server.wait()
        psutil.wait_procs(running, timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        first = measure(data_dir)
        rounds = [measure(data_dir) for _ in range(arguments.rounds)]
    report("the first start", [first])
    report("later starts", rounds)


def report(name: str, rounds: list[tuple[float, dict[str, tuple[float, float]]]]) -> None:
    """Print medians of some starts."""
    seconds = [seconds for seconds, _ in rounds]
    print(
        f"{name}: first token after {statistics.median(seconds):.2f} s "
        f"(of {len(rounds)}: {min(seconds):.2f} to {max(seconds):.2f})"
    )
    for role in rounds[0][1]:
        pss, rss = (statistics.median(sizes[role][index] for _, sizes in rounds) for index in (0, 1))
        print(f"{role:<12} PSS {pss:6.0f} MB   RSS {rss:6.0f} MB")
    total = statistics.median(sum(pss for pss, _ in sizes.values()) for _, sizes in rounds)
    print(f"{'all':<12} PSS {total:6.0f} MB")


if __name__ == "__main__":
    main()
