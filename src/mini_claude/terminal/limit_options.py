"""Options and words for limits of a key's or a user's own."""

from dataclasses import asdict, replace
from typing import Annotated, Final

import typer

from mini_claude.data.records import NO_LIMITS, Limits
from mini_claude.errors import InvalidRequest

_SHORT: Final = {
    "requests_per_minute": "req/min",
    "requests_per_day": "req/day",
    "tokens_per_minute": "tok/min",
    "tokens_per_day": "tok/day",
    "concurrent_replies": "at once",
}
Limit = Annotated[int | None, typer.Option(min=0, help="0: no limit.", show_default="what the settings say")]
NewLimit = Annotated[int | None, typer.Option(min=0, help="0: no limit.", show_default="as it is")]
Reset = Annotated[bool, typer.Option("--reset", help="First let the settings say all of them.")]


def changed(before: Limits, given: Limits, *, reset: bool) -> Limits:
    """The limits from before, or none of its own with `reset`, and in their places those that were given.

    Raises `InvalidRequest` where nothing would change.
    """
    new = {name: value for name, value in asdict(given).items() if value is not None}
    if not new and not reset:
        raise InvalidRequest("Say which limit to change, as in --requests-per-minute 20, or --reset.")
    return replace(NO_LIMITS if reset else before, **new)


def words_of(limits: Limits) -> list[str]:
    """Limits of somebody's own, each in a few characters, as in 60 req/min or 1M tok/day."""
    own = {name: value for name, value in asdict(limits).items() if value is not None}
    return [f"{_compact(value) if value else 'any'} {_SHORT[name]}" for name, value in own.items()]


def told(limits: Limits) -> str:
    """The same in one line."""
    return ", ".join(words_of(limits)) or "what the settings say"


def _compact(num: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if num % size == 0:
            return f"{num // size}{letter}"
    return str(num)
