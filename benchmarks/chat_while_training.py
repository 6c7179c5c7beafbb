"""Time to first token of short questions to a server that is idle, and to the same one while it trains.

    python benchmarks/chat_while_training.py [--questions 30]

The server is a user's own, `mini-claude serve` with a data directory of its own, and the job is the one of
`mini-claude train --demo`. Over HTTP, as a client sees it; every question is another, so no prefix helps.
"""

import argparse
import contextlib
import importlib.resources
import statistics
import time
from typing import Any

import httpx

from serve import server
from torch_engine_setup import embedded_model

TOPICS = ("rivers", "bread", "glass", "wolves", "paper", "comets", "salt", "bridges", "tea", "clocks")
JOB: dict[str, Any] = {
    "dataset_path": "demo",
    "training_args": {"num_train_epochs": 100.0, "learning_rate": 1e-3, "per_device_train_batch_size": 16},
}


def first_token(http: httpx.Client, number: int) -> float:
    """Seconds from the request to the first words of its reply."""
    topic = TOPICS[number % len(TOPICS)]
    question = (
        f"{number}: What should a curious person know about {topic} before reading a long book about them next week?"
    )
    body = {
        "messages": [{"role": "user", "content": question}],
        "model": "smollm2-135m",
        "stream": True,
        "max_tokens": 16,
        "temperature": 0,
    }
    start = time.perf_counter()
    seconds = 0.0
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():  # to its end, so that the next question finds an idle engine
            if not seconds and '"content":"' in line and '"content":""' not in line:
                seconds = time.perf_counter() - start
    assert seconds, "a reply without words"
    return seconds


def measure(http: httpx.Client, name: str, first: int, num_questions: int) -> float:
    seconds = sorted(first_token(http, first + index) for index in range(num_questions))
    median = statistics.median(seconds)
    print(
        f"{name:<15} median {1000 * median:5.0f} ms   p90 {1000 * seconds[int(0.9 * len(seconds))]:5.0f} ms", flush=True
    )
    return median


def until(http: httpx.Client, path: str, done: Any) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):  # it has not started yet
            if done(http.get(path)):
                return
        time.sleep(0.2)
    raise AssertionError(f"{path} did not come to that")


def run(http: httpx.Client, num_questions: int) -> None:
    until(http, "/api/v1/health", lambda answer: answer.status_code == 200)
    measure(http, "(warm-up)", 0, 5)
    idle = measure(http, "idle", 100, num_questions)
    data = (importlib.resources.files("mini_claude.training") / "demo.jsonl").read_bytes()
    http.post("/api/v1/datasets", files={"file": ("demo.jsonl", data)}, data={"name": "demo"}).raise_for_status()
    job = http.post("/api/v1/training/jobs", json=JOB).raise_for_status().json()
    path = f"/api/v1/training/jobs/{job['id']}"
    until(http, path, lambda answer: answer.json()["progress"].get("step", 0) >= 2)
    before = http.get(path).json()["progress"]["step"]
    training = measure(http, "while it trains", 1000, num_questions)
    steps = http.get(path).json()["progress"]["step"] - before
    http.delete(path)
    print(
        f"time to first token while a job trains: {training / idle:.2f}x of idle; the job took {steps} steps meanwhile"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=30)
    arguments = parser.parse_args()
    with (
        server(embedded_model()) as address,
        httpx.Client(base_url=f"http://{address}", timeout=60) as http,
    ):
        run(http, arguments.questions)


if __name__ == "__main__":
    main()
