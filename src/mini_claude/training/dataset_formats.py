"""A dataset file as training examples: its format is detected and stated, and no row is ever dropped in silence."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import InvalidRequest
from mini_claude.training.dataset_files import Row, container_of, rows_of
from mini_claude.training.dataset_lines import MAX_ROW_BYTES, TOO_LARGE
from mini_claude.training.examples import (
    Container,
    Conversation,
    DatasetFormat,
    Example,
    PlainText,
    Preference,
    RowProblem,
)
from mini_claude.training.row_formats import UnusableRow, example_of, format_of

MAX_ROWS: Final = 1_000_000
FORMATS: Final[dict[DatasetFormat, str]] = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "alpaca": '{"instruction": "...", "input": "...", "output": "..."}',
    "prompt_completion": '{"prompt": "...", "completion": "..."}',
    "dialogue": '["...", "..."] or {"dialogue": ["...", "..."]}',
    "preference": '{"prompt": "...", "chosen": "...", "rejected": "..."}',
    "text": '{"text": "..."}, or a plain text file',
}
_NUM_DETECTED: Final = 100  # rows that are looked at to tell the format


def detect(path: Path) -> tuple[Container, DatasetFormat]:
    """What the file is and what its rows are: the format of most of its first rows.

    Raises `InvalidRequest` with the reason and the formats there are when nothing fits.
    """
    container = container_of(path)
    first = list(itertools.islice(rows_of(path, container), _NUM_DETECTED))
    found = Counter(data_format for row in first if isinstance(row, Row) if (data_format := format_of(row.value)))
    if not found:
        known = "; ".join(f"{name}: {shape}" for name, shape in FORMATS.items())
        raise InvalidRequest(
            f"No row has a format that is known: {_why(first)}. The formats: {known}.",
            code="unknown_dataset_format",
            param="file",
        )
    return container, found.most_common(1)[0][0]


def _why(rows: list[Row | RowProblem]) -> str:
    if not rows:
        return "there are no rows"
    row = rows[0]
    where = f"row {row.number}" if isinstance(row, Row) else f"row {row.row}"
    if isinstance(row, RowProblem):
        return f"{where}: {row.reason}"
    if not isinstance(row.value, dict):
        return f"{where} is no object and no list of turns"
    names = ", ".join(repr(name[:40]) for name in list(row.value)[:10]) or "nothing that is known"
    return f"{where} has {names}"


def read_examples(path: Path) -> Iterator[Example | RowProblem]:
    """Every row of the file in its order, as an example or as the reason why it is none.

    Reads as it goes, so that a file of any size takes little memory. Raises `InvalidRequest` as `detect` does, and
    for a file of more than MAX_ROWS rows.
    """
    container, data_format = detect(path)
    for row in rows_of(path, container):
        number = row.number if isinstance(row, Row) else row.row
        if number > MAX_ROWS:
            raise InvalidRequest(f"The dataset has more than {MAX_ROWS} rows: split it.", param="file")
        yield _example(row, data_format) if isinstance(row, Row) else row


def _example(row: Row, data_format: DatasetFormat) -> Example | RowProblem:
    try:
        example = example_of(row.value, data_format, row.number)
    except UnusableRow as error:
        return RowProblem(row.number, row.line, str(error))
    # Parquet has no bound of its own.
    return RowProblem(row.number, row.line, TOO_LARGE) if _size(example) > MAX_ROW_BYTES else example


def _size(example: Example) -> int:
    match example:
        case Conversation(messages=messages):
            texts: Any = (message.content for message in messages)
        case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
            texts = (*(message.content for message in prompt), chosen, rejected)
        case PlainText(text=text):
            texts = (text,)
    return sum(map(len, texts))
