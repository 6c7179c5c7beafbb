"""What a training row is, whatever file format it came from."""

from dataclasses import dataclass
from typing import Literal

from mini_claude.types import Message

DatasetFormat = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "dialogue", "text", "preference"]
Container = Literal["jsonl", "json", "csv", "parquet", "text"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Supervised fine-tuning: the model learns what the assistant says, but the messages at `unlearned` (from 0).

    `row` counts from 1 in file order.
    """

    messages: tuple[Message, ...]
    row: int
    unlearned: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """Preference tuning: after `prompt`, `chosen` is a better answer than `rejected`."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    row: int


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text without turns; every token is supervised."""

    text: str
    row: int


Example = Conversation | Preference | PlainText


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that cannot be used. `line` is the line in the file where the format has lines, else None."""

    row: int
    line: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Token ids and, aligned, which of them the loss sees (as targets). `row` leads back to the file."""

    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    row: int
    truncated: int = 0  # tokens that were cut off at the end


@dataclass(frozen=True, slots=True)
class TokenizedPreference:
    """Both answers after the same prompt."""

    chosen: TokenizedExample
    rejected: TokenizedExample
