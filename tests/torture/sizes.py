"""How much each torture test does: a little in CI, and all of it, marked `torture`, in `make torture`."""

from dataclasses import dataclass
from typing import Final

import pytest


@dataclass(frozen=True)
class Sizes:
    """Numbers of things at once, or one after another."""

    slow_sockets: int  # each sends a byte a second
    web_sockets: int  # open at once
    cases: int  # schemathesis's, of each operation
    upload_cases: int  # of those that start a process for each file
    payloads: int  # that want to be paths, for each field
    page_payloads: int  # for each of the page's fields
    random_paths: int
    refusals: int  # by a server that is full
    refusal_seconds: float  # that all but one in a hundred may take
    kills: int  # of what trains a job, one after another
    pages: int  # that stream at once
    shutdowns: int  # under load, one after another over the same data
    soak_seconds: float  # of ordinary use, at least
    soak_rounds: int  # of it, at least


REDUCED: Final = Sizes(
    slow_sockets=60,
    web_sockets=100,
    cases=30,
    upload_cases=3,
    payloads=5,
    page_payloads=2,
    random_paths=500,
    refusals=30,
    refusal_seconds=1.0,  # on a machine that does other things too
    kills=8,
    pages=8,
    shutdowns=2,
    soak_seconds=0.0,
    soak_rounds=60,
)
FULL: Final = Sizes(
    slow_sockets=500,
    web_sockets=1000,
    cases=200,
    upload_cases=40,
    payloads=330,
    page_payloads=200,
    random_paths=10_000,
    refusals=500,
    refusal_seconds=0.1,
    kills=20,
    pages=20,
    shutdowns=20,
    soak_seconds=1800.0,
    soak_rounds=2000,
)
FULL_SECONDS: Final = 3000  # the longest that one test may take at full size
at_both_sizes: Final = pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(REDUCED, id="reduced"),
        pytest.param(FULL, id="full", marks=[pytest.mark.torture, pytest.mark.timeout(FULL_SECONDS)]),
    ],
)
