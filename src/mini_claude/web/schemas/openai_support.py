"""Which of OpenAI's parameters are refused, and which values of them mean "not used".

The rule: a parameter is honoured or refused by name, never accepted and ignored. A parameter in these tables is
accepted with its neutral values only, because then there is nothing to honour; null is always neutral.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import PydanticCustomError

CHAT_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "audio": (),
    "function_call": ("none", "auto"),  # without functions both mean: answer in text
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),  # without tools there is nothing to run in parallel
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory", "in-memory"),  # where the prefix cache is
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

COMPLETION_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}

# `assistant` messages that an SDK read from a response come back with these.
MESSAGE_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_calls": ([],),
}

STREAM_OPTIONS_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {"include_obfuscation": (False,)}


def unsupported(name: str, why: str) -> PydanticCustomError:
    """The error for a parameter that this server knows and does not do; `name` is relative to the place."""
    return PydanticCustomError("unsupported_parameter", "{why}", {"param": name, "why": why})


def without_neutral(values: object, table: Mapping[str, tuple[object, ...]]) -> object:
    """`values` less the neutral parameters of `table`; raises for one that asks for something."""
    if not isinstance(values, dict):
        return values
    kept: dict[Any, Any] = {}
    for name, value in values.items():
        if name not in table:
            kept[name] = value
        elif value is not None and not any(_same(value, neutral) for neutral in table[name]):
            raise unsupported(name, f"'{name}' is not supported by this server: leave it out.")
    return kept


def _same(value: object, neutral: object) -> bool:
    return type(value) is type(neutral) and value == neutral  # True == 1, but they are not the same parameter
