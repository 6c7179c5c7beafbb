"""Files made of columns: CSV and Parquet. A row is an object of the columns' names."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import InvalidRequest
from mini_claude.training.dataset_lines import MAX_ROW_BYTES, TOO_LARGE, lines_of
from mini_claude.training.json_document import Broken, parse
from mini_claude.training.row_formats import COLUMNS, TURN_KEYS, fits_columns

_DELIMITERS: Final = (",", ";", "\t")
_BATCH_ROWS: Final = 64


def unreadable(reason: str) -> InvalidRequest:
    """The error for a file that is no dataset at all."""
    return InvalidRequest(
        f"{reason} Send JSONL, a JSON list, CSV, Parquet or plain text, in UTF-8.",
        code="unknown_dataset_format",
        param="file",
    )


def is_csv(path: Path) -> bool:
    """Whether the first line is a header of at least two columns that training data has."""
    _, names = _dialect(path)
    return len(names) > 1 and fits_columns(names)


def _dialect(path: Path) -> tuple[str, Sequence[str]]:
    """The delimiter that makes the first line a header of training data, else the comma; and the header's names."""
    with path.open("rb") as file:
        header = (next((line for _, line in lines_of(file)), None) or b"").decode("utf-8", "replace")
    candidates = [(delimiter, _names(header, delimiter)) for delimiter in _DELIMITERS]
    return next((each for each in candidates if fits_columns(each[1])), candidates[0])


def _names(header: str, delimiter: str) -> Sequence[str]:
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    except csv.Error:
        return []


def csv_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Each record as an object of texts, with its first line's number; turns may be a cell of JSON."""
    csv.field_size_limit(MAX_ROW_BYTES)
    delimiter, names = _dialect(path)
    if len(set(names)) < len(names):
        raise unreadable("Two columns of the CSV file have the same name.")
    with path.open("rb") as file:
        records = csv.reader(map(_csv_line, lines_of(file)), delimiter=delimiter, strict=True)
        try:
            next(records)
        except csv.Error as error:
            raise unreadable(f"The header of the CSV file is broken: {error}.") from error
        while True:
            line = records.line_num + 1
            try:
                cells = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, Broken(f"it is not valid CSV: {error}")
                continue
            if cells:  # a blank line has none
                yield line, _record(names, cells)


def _csv_line(numbered: tuple[int, bytes | None]) -> str:
    line = numbered[1]
    if line is None:
        return "x" * (MAX_ROW_BYTES + 1)  # a cell that the reader will find too large
    return line.decode("utf-8", "surrogateescape") + "\n"


def _record(names: Sequence[str], cells: Sequence[str]) -> Any:
    if len(cells) != len(names):
        return Broken(f"it has {len(cells)} cells, and the header has {len(names)}")
    if sum(map(len, cells)) > MAX_ROW_BYTES:
        return Broken(TOO_LARGE)
    return {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if name in COLUMNS}


def _cell(name: str, cell: str) -> Any:
    if name not in TURN_KEYS:
        return cell
    try:
        return parse(cell)
    except ValueError:
        return cell  # whoever wants turns there will say that this is a text


def parquet_values(path: Path) -> Iterator[tuple[None, Any]]:
    """Each row's known columns. Raises `InvalidRequest` for a damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                for index in range(batch.num_rows):
                    yield None, _table_row(batch.slice(index, 1))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(f"The Parquet file is damaged or of an unknown kind ({error}).") from error


def _table_row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return Broken("it is not UTF-8")
