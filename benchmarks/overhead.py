"""What keys, limits and a scraper cost: tokens per second with all of them, divided by those with none of them.

    python benchmarks/overhead.py [--rounds 9] [--concurrencies 1 4 16]

Two servers run side by side, each with the embedded model, and only one of them is asked at a time. "Without" has no
key and no limits: the local caller is let in at once. "With" has keys, whoever asks has a key with all five limits
(none of which is reached), and while it is asked a scraper reads its metrics once a second. What cannot be switched off
is in both, and so not in the ratio: metrics are counted and requests are logged.

Clients are those of benchmarks/serve.py, 100 tokens a question. Who is asked first changes from round to round.
Printed: the medians of all rounds, and the ratio: the median of the rounds' own ratios, so that a machine that becomes
slower meanwhile changes nothing.
"""

import argparse
import contextlib
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx

from own_process import in_own_process
from serve import server

SERVE = str(Path(__file__).with_name("serve.py"))
SCRAPE_SECONDS = 1.0
UNREACHED = 1_000_000_000
LIMITS = dict.fromkeys(
    ("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day", "concurrent_replies"), UNREACHED
)


def make_key(address: str, admin: str | None = None, **fields: object) -> str:
    """A new key's text; the first one needs no other."""
    headers = {} if admin is None else {"authorization": f"Bearer {admin}"}
    answer = httpx.post(f"http://{address}/api/v1/keys", json={"name": "benchmark", **fields}, headers=headers)
    made: str = answer.raise_for_status().json()["key"]
    return made


@contextlib.contextmanager
def scraped(address: str, admin: str) -> Iterator[None]:
    """As by Prometheus, meanwhile."""
    over = threading.Event()

    def scrape() -> None:
        with httpx.Client(base_url=f"http://{address}", headers={"authorization": f"Bearer {admin}"}) as http:
            while not over.wait(SCRAPE_SECONDS):
                http.get("/api/v1/metrics").raise_for_status()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def tokens_per_second(address: str, concurrency: int, key: str | None) -> float:
    keyed = [] if key is None else ["--key", key]
    speed: float = in_own_process(SERVE, "--client", address, str(concurrency), *keyed)["tokens_per_second"]
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--concurrencies", nargs="+", type=int, default=[1, 4, 16])
    arguments = parser.parse_args()
    # This imports torch, and a client needs nothing of it.
    from torch_engine_setup import embedded_model

    folder = embedded_model()
    with server(folder) as plain, server(folder) as guarded:
        admin = make_key(guarded)
        key = make_key(guarded, admin, role="user", **LIMITS)
        without: dict[int, list[float]] = {each: [] for each in arguments.concurrencies}
        with_all: dict[int, list[float]] = {each: [] for each in arguments.concurrencies}
        for number in range(arguments.rounds):
            for concurrency in arguments.concurrencies:
                for is_guarded in (False, True) if number % 2 else (True, False):
                    if is_guarded:
                        with scraped(guarded, admin):
                            with_all[concurrency].append(tokens_per_second(guarded, concurrency, key))
                    else:
                        without[concurrency].append(tokens_per_second(plain, concurrency, None))
        for concurrency in arguments.concurrencies:
            pairs = zip(with_all[concurrency], without[concurrency], strict=True)
            ratios = sorted(ours / bare for ours, bare in pairs)
            print(
                f"at {concurrency:>2}: with {statistics.median(with_all[concurrency]):6.1f} tokens/s, "
                f"without {statistics.median(without[concurrency]):6.1f}, "
                f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
