"""The files that training data comes in, read row by row: what a row means is row_formats.py's business.

    jsonl     a JSON value a line
    json      a list of rows, one row, or an object whose "conversations" is a list of dialogues (as ChatterBot has)
    csv       a header, then a row a record; commas, semicolons or tabs
    parquet   a row a record
    text      a text a paragraph where blank lines part them, else a text a line

No file is read whole. Nothing here imports torch; pyarrow comes in with the first Parquet file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mini_claude.training.dataset_lines import BOM, filled_lines, jsonl_values, text_values, value_of_line
from mini_claude.training.dataset_tables import csv_values, is_csv, parquet_values, unreadable
from mini_claude.training.examples import Container, RowProblem
from mini_claude.training.json_document import Broken, JSONDocument

SUFFIXES: Final[dict[Container, str]] = {
    "jsonl": ".jsonl",
    "json": ".json",
    "csv": ".csv",
    "parquet": ".parquet",
    "text": ".txt",
}
_LINED_SUFFIXES: Final = (".jsonl", ".ndjson")
_TEXT_SUFFIXES: Final = frozenset({".txt", ".text", ".md", ""})
KNOWN_SUFFIXES: Final = frozenset({*SUFFIXES.values(), *_LINED_SUFFIXES, *_TEXT_SUFFIXES, ".tsv"})
_HEAD_BYTES: Final = 65_536
_OPENINGS: Final = (b"[", b"{", b"[{", b"[[", b"[[{")  # how pretty-printed documents begin


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it stands in the file. `number` counts from 1; `line` is None where the file has no lines."""

    number: int
    line: int | None
    value: Any


def container_of(path: Path) -> Container:
    """What kind of file this is: its content says, and its suffix where the content does not.

    Raises `InvalidRequest` for what is no training data at all.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return "parquet"
    _check_text(head, suffix)
    if head.removeprefix(BOM).lstrip()[:1] in (b"[", b"{"):
        return _json_or_jsonl(path, suffix)
    if suffix in (".json", *_LINED_SUFFIXES):
        raise unreadable(f"The file is called {suffix} but does not begin with {{ or [.")
    if suffix in (".csv", ".tsv") or is_csv(path):
        return "csv"
    if suffix not in _TEXT_SUFFIXES:
        raise unreadable(
            "The file is none of those that are known by their content, and its name does not end in .txt."
        )
    return "text"


def rows_of(path: Path, container: Container) -> Iterator[Row | RowProblem]:
    """All rows in their order; one that cannot be read is a problem, and reading goes on behind it.

    Raises `InvalidRequest` for a file whose rows cannot be told apart (damaged Parquet, CSV without a header).
    """
    values: Iterator[tuple[int | None, Any]]
    match container:
        case "jsonl":
            values = jsonl_values(path)
        case "json":
            values = _json_values(path)
        case "csv":
            values = csv_values(path)
        case "parquet":
            values = parquet_values(path)
        case "text":
            values = text_values(path)
    for number, (line, value) in enumerate(values, 1):
        yield RowProblem(number, line, value.reason) if isinstance(value, Broken) else Row(number, line, value)


def _check_text(head: bytes, suffix: str) -> None:
    if not head.removeprefix(BOM).strip():
        raise unreadable("The file is empty.")
    if suffix == ".parquet":
        raise unreadable("The file is called .parquet but is none; it may be damaged.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise unreadable("The file is UTF-16; save it as UTF-8.")
    # A NUL or an odd byte in one row is that row's problem, so only much of it condemns the file.
    num_odd = head.count(b"\0") + head.decode("utf-8", "replace").count("�")
    if num_odd * 10 > len(head):
        raise unreadable("The file holds something else than text.")


def _json_or_jsonl(path: Path, suffix: str) -> Container:
    with path.open("rb") as file:
        lines = (line for _, line in filled_lines(file))
        first, second = next(lines, None), next(lines, b"")
    value = value_of_line(first)
    if isinstance(value, Broken):
        # The beginning of a document, or JSONL whose first line is broken: then its second is a row by itself.
        if first is not None and first.strip() in _OPENINGS:
            return "json"
        by_itself = second is None or isinstance(value_of_line(second), list | dict)
        return "jsonl" if by_itself or suffix in _LINED_SUFFIXES else "json"
    if second != b"" or suffix in _LINED_SUFFIXES:
        return "jsonl"
    is_row = isinstance(value, dict) and not _holds_dialogues(value)
    is_dialogue = isinstance(value, list) and bool(value) and all(isinstance(turn, str) for turn in value)
    return "jsonl" if is_row or is_dialogue else "json"


def _holds_dialogues(value: Any) -> bool:
    """Whether an object holds many dialogues, each a list of its turns."""
    dialogues = value.get("conversations") if isinstance(value, dict) else None
    return isinstance(dialogues, list) and bool(dialogues) and isinstance(dialogues[0], list)


def _json_values(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        document = JSONDocument(file)
        if document.peek() == "[":
            yield from document.elements()
        elif isinstance(whole := document.ahead(), dict) and not _holds_dialogues(whole):
            yield document.line, document.value()
        else:
            yield from _dialogues(document)
            return
        if document.peek():
            yield document.line, Broken("something follows the end of the JSON; it was not read")


def _dialogues(document: JSONDocument) -> Iterator[tuple[int, Any]]:
    """The elements of "conversations" in the object that begins here."""
    first = document.line
    found = False
    document.take("{")
    while not document.take("}"):
        line = document.line
        key = document.value() if document.peek() == '"' else None
        if not isinstance(key, str) or not document.take(":"):
            yield line, Broken("it is not valid JSON: the name of a member is missing, and the rest was not read")
            return
        if key == "conversations" and document.peek() == "[":
            yield from document.elements()
            found = True
        else:
            document.value()
        if not document.take(",") and document.peek() != "}":
            yield document.line, Broken("it is not valid JSON: ',' or '}' is missing, and the rest was not read")
            return
    if not found:
        yield first, Broken('the file is one JSON object without a list "conversations"')
    if document.peek():
        yield document.line, Broken("something follows the end of the JSON; it was not read")
