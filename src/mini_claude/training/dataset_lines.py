"""Files made of lines: a JSON value a line, or texts. Lines are bounded, whatever the file holds."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from mini_claude.training.json_document import MAX_VALUE_CHARACTERS, Broken, parse

MAX_ROW_BYTES: Final = MAX_VALUE_CHARACTERS
TOO_LARGE: Final = f"it is larger than {MAX_ROW_BYTES} bytes"
BOM: Final = b"\xef\xbb\xbf"

Lines = Iterator[tuple[int, bytes | None]]  # number from 1 and content, None where that is too large


def lines_of(file: IO[bytes]) -> Lines:
    """Each line with its number and without its end; None for one that is too large."""
    for number in itertools.count(1):
        line = file.readline(MAX_ROW_BYTES + 2)
        if not line:
            return
        ended = line.endswith(b"\n")
        content = line.rstrip(b"\r\n")
        if number == 1:
            content = content.removeprefix(BOM)
        too_large = len(content) > MAX_ROW_BYTES
        while not ended and (rest := file.readline(MAX_ROW_BYTES)):
            ended = rest.endswith(b"\n")
            too_large = True
        yield number, None if too_large else content


def filled_lines(file: IO[bytes]) -> Lines:
    """The lines that hold more than white space."""
    return ((number, line) for number, line in lines_of(file) if line is None or line.strip())


def value_of_line(line: bytes | None) -> Any:
    """The JSON value of a line, or `Broken`."""
    if line is None:
        return Broken(TOO_LARGE)
    try:
        return parse(line.decode())
    except UnicodeDecodeError as error:
        return Broken(f"it is not UTF-8 (byte {error.start + 1} of its line)")
    except ValueError as error:
        return Broken(str(error))


def jsonl_values(path: Path) -> Iterator[tuple[int, Any]]:
    """The value of each line that is not blank, with the line's number."""
    with path.open("rb") as file:
        for number, line in filled_lines(file):
            yield number, value_of_line(line)


def text_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Each text as {"text": ...} with its first line's number: paragraphs where blank lines part them, else lines."""
    with path.open("rb") as file:
        by_paragraph = _has_blank_line(file)
    with path.open("rb") as file:
        texts = _paragraphs(lines_of(file)) if by_paragraph else filled_lines(file)
        for number, text in texts:
            yield number, _text_value(text)


def _has_blank_line(file: IO[bytes]) -> bool:
    """Whether a blank line stands between two texts."""
    seen_text = seen_blank = False
    for _, line in lines_of(file):
        if line is not None and not line.strip():
            seen_blank = seen_text
        elif seen_blank:
            return True
        else:
            seen_text = True
    return False


def _paragraphs(lines: Lines) -> Lines:
    for blank, group in itertools.groupby(lines, key=lambda item: item[1] is not None and not item[1].strip()):
        if blank:
            continue
        first = num_bytes = 0
        kept: list[bytes] = []
        for number, line in group:
            first = first or number
            num_bytes += MAX_ROW_BYTES + 1 if line is None else len(line) + 1
            if num_bytes <= MAX_ROW_BYTES:  # else counting goes on, keeping does not
                kept.append(line or b"")
        yield first, b"\n".join(kept) if num_bytes <= MAX_ROW_BYTES else None


def _text_value(text: bytes | None) -> Any:
    if text is None:
        return Broken(TOO_LARGE)
    try:
        return {"text": text.decode()}
    except UnicodeDecodeError as error:
        return Broken(f"it is not UTF-8 (byte {error.start + 1} of it)")
