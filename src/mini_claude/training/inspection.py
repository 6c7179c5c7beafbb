"""What a dataset file holds, without a model: container, format, rows and what is wrong with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mini_claude.training.dataset_formats import detect, read_examples
from mini_claude.training.examples import Container, DatasetFormat, RowProblem

MAX_PROBLEMS: Final = 20  # that are told; all are counted


@dataclass(frozen=True, slots=True)
class InspectionRequest:
    """The file to read."""

    path: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """`num_broken` of `num_rows` rows are no examples; `problems` are the first of them."""

    container: Container
    format: DatasetFormat
    num_rows: int
    num_broken: int
    problems: tuple[RowProblem, ...]


def inspect(request: InspectionRequest) -> Inspection:
    """Read all of the file. Raises `InvalidRequest` where it is no dataset."""
    path = Path(request.path)
    container, data_format = detect(path)
    num_rows = num_broken = 0
    problems: list[RowProblem] = []
    for example in read_examples(path):
        num_rows += 1
        if isinstance(example, RowProblem):
            num_broken += 1
            if len(problems) < MAX_PROBLEMS:
                problems.append(example)
    return Inspection(container, data_format, num_rows, num_broken, tuple(problems))
