"""What can be asked about a dataset before it is trained on, and the answer: plain values without torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mini_claude.training.arguments import LoraSettings, TrainingArguments
from mini_claude.training.examples import Container, DatasetFormat, RowProblem
from mini_claude.types import ModelSpec

Part = Literal["example", "chosen", "rejected"]


@dataclass(frozen=True, slots=True)
class Examination:
    """What somebody wants to know. `arguments` are those of the job; `num_rows` rows are shown token by token."""

    num_rows: int = 5
    measure: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    arguments: TrainingArguments = field(default_factory=TrainingArguments)


@dataclass(frozen=True, slots=True)
class DoctorRequest:
    """All that the short process is told. `num_rows` is how many rows the file has."""

    path: str
    num_rows: int
    spec: ModelSpec
    wanted: Examination
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SampleToken:
    """A token as the model gets it; the loss sees it as a target where `supervised`.

    `text` is what the token completes: of a character that takes several tokens, the last one has it.
    """

    id: int
    text: str
    supervised: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """An example token by token. `part` tells the two answers of a preference apart."""

    row: int
    part: Part
    tokens: tuple[SampleToken, ...]
    truncated: int  # tokens that were cut off behind these


@dataclass(frozen=True, slots=True)
class LengthCount:
    """A bar of the histogram: so many examples have more tokens than the bar before, and at most `up_to`."""

    up_to: int
    num_examples: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A row that says the same as an earlier one."""

    row: int
    of_row: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would cost, from a few of its real steps on this machine."""

    seconds: float
    num_steps: int
    seconds_per_step: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Counts hold for the first `num_rows` rows; `complete` tells whether these are all.

    Broken are also the rows in which nothing supervised is left, and those that the model's template refuses.
    Lengths are those before truncation; of a preference both answers count, each with its prompt.
    """

    model: str
    container: Container
    format: DatasetFormat
    max_length: int
    num_rows: int
    complete: bool
    num_broken: int
    problems: tuple[RowProblem, ...]
    num_examples: int
    num_tokens: int
    num_supervised_tokens: int
    supervised_share: float
    num_truncated: int  # examples
    num_truncated_tokens: int
    num_duplicates: int
    duplicates: tuple[Duplicate, ...]
    longest: int
    lengths: tuple[LengthCount, ...]
    samples: tuple[Sample, ...]
    estimate: Estimate | None = None
