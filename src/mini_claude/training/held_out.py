"""The part of the data that is never trained on, to measure with."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from mini_claude.training.examples import TokenizedExample, TokenizedPreference
from mini_claude.training.flat_row import texts_of

_Example = TypeVar("_Example", bound=TokenizedExample | TokenizedPreference)


def split(examples: Sequence[_Example], eval_ratio: float) -> tuple[list[_Example], list[_Example]]:
    """(to train on, held out), both in file order; of ten examples or more at least one is held out.

    Which ones depends on what they say and on nothing else: equal examples are on the same side, the order of the file
    does not matter, and runs with different seeds are measured by the same examples.
    """
    digests = [digest(example) for example in examples]
    copies = Counter(digests)
    wanted = round(len(examples) * eval_ratio)
    if eval_ratio > 0 and len(examples) >= 10:
        wanted = max(1, wanted)
    chosen: set[bytes] = set()
    for value in sorted(copies)[:-1]:  # something is left to train on
        if wanted <= 0:
            break
        chosen.add(value)
        wanted -= copies[value]
    train = [example for example, value in zip(examples, digests, strict=True) if value not in chosen]
    held_out = [example for example, value in zip(examples, digests, strict=True) if value in chosen]
    return train, held_out


def digest(example: TokenizedExample | TokenizedPreference) -> bytes:
    """SHA-256 of the tokens and of which are supervised."""
    value = hashlib.sha256()
    for text in texts_of(example):
        value.update(repr((text.token_ids, text.supervised)).encode())
    return value.digest()
