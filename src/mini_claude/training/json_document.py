"""A JSON document read forwards through a window, so that a list of any length takes little memory.

It knows JSON and lines, and nothing of training. A value that is broken costs that value, not the document.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

MAX_VALUE_CHARACTERS: Final = 1_048_576
MAX_DEPTH: Final = 32
_TOO_DEEP: Final = f"it is nested deeper than {MAX_DEPTH} levels"
_CHUNK_BYTES: Final = 4 * MAX_VALUE_CHARACTERS  # the window moves seldom, since moving it copies what is left
_SPACE: Final = re.compile(r"[ \t\r\n]*+")
_CLOSES: Final = {"]": "[", "}": "{"}
_MARKS: Final = re.compile(r'"(?:[^"\\\n]|\\.)*+"|[\[\]{},]')


@dataclass(frozen=True, slots=True)
class Broken:
    """A place where a value should be and is none."""

    reason: str


def parse(text: str) -> Any:
    """The value of a text that is all of one JSON value. Raises `ValueError` with a reason for people."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(_why(error) + where) from error
    check_depth(value, text)
    return value


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return f"it is not valid JSON: {error.msg if isinstance(error, json.JSONDecodeError) else 'a number is too long'}"


def check_depth(value: Any, text: str) -> None:
    """Raise `ValueError` where `value`, written as `text`, is nested deeper than MAX_DEPTH."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [each for each in level if isinstance(each, list | dict)]
        if not containers:
            return
        level = [child for each in containers for child in (each.values() if isinstance(each, dict) else each)]
    raise ValueError(_TOO_DEEP)


class JSONDocument:
    """A document from its beginning to its end. `line` is where we are, from 1.

    Bytes that are not UTF-8 become surrogates (PEP 383) for the reader of the values to find.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.line = 1
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self._fill()
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._move(match.end())
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        """Move past the next character if it is this one."""
        if self.peek() != character:
            return False
        self._move(self._at + 1)
        return True

    def ahead(self) -> Any:
        """The next value without moving there; `Broken` where it does not end within the window."""
        self.peek()
        try:
            return self._scan(self._text, self._at)[0]
        except (ValueError, RecursionError):
            return Broken("it is not valid JSON")

    def value(self) -> Any:
        """The next value, or `Broken`. Either way we are then behind it."""
        self.peek()
        start = self.line
        try:
            value, end = self._scan(self._text, self._at)
        except (ValueError, RecursionError) as error:
            reason = self._reason(error)
            num_skipped = self._skip()
            if num_skipped > MAX_VALUE_CHARACTERS:
                reason = f"it is larger than {MAX_VALUE_CHARACTERS} characters, or not valid JSON"
            lines = f"; lines {start} to {self.line} were skipped" if self.line > start else ""
            return Broken(reason + lines)
        text = self._text[self._at : end]
        self._move(end)
        if len(text) > MAX_VALUE_CHARACTERS:
            return Broken(f"it is larger than {MAX_VALUE_CHARACTERS} characters")
        try:
            check_depth(value, text)
        except ValueError as error:
            return Broken(str(error))
        return value

    def elements(self) -> Iterator[tuple[int, Any]]:
        """The values of the list that begins here, each with its line. What does not belong there is `Broken`."""
        self.take("[")
        separated = True
        while True:
            character = self.peek()
            line = self.line
            if character == "]":
                self.take("]")
                return
            if not character:
                yield line, Broken("the file ends in the middle of the list")
                return
            if character in ",}":
                self._move(self._at + 1)
                yield line, Broken(f"there is {character!r} where a row should begin")
                continue
            value = self.value()
            yield line, value if separated else Broken("the comma before this row is missing, so it was left out")
            separated = self.take(",")

    def _fill(self) -> None:
        """Have more than the largest value in front of us, or all that is left."""
        if self._ended or len(self._text) - self._at > MAX_VALUE_CHARACTERS:
            return
        parts = [self._text[self._at :]]
        num_characters = len(parts[0])
        while num_characters <= MAX_VALUE_CHARACTERS and not self._ended:
            chunk = self._file.read(_CHUNK_BYTES)
            self._ended = not chunk
            parts.append(self._decode(chunk, final=self._ended))
            num_characters += len(parts[-1])
        self._text, self._at = "".join(parts), 0

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _reason(self, error: ValueError | RecursionError) -> str:
        if not isinstance(error, json.JSONDecodeError):
            return _why(error)
        return f"{_why(error)} in line {self.line + self._text.count(chr(10), self._at, error.pos)}"

    def _skip(self) -> int:
        """Move behind a value that cannot be read, by its brackets; the number of characters passed over.

        Stops before a comma or a closing bracket that belongs to the list around it.
        """
        brackets = _Brackets()
        num_skipped = 0
        while True:
            self._fill()
            # A mark near the end of the window may go on behind it, so it waits until the window has moved.
            limit = len(self._text) if self._ended else len(self._text) - MAX_VALUE_CHARACTERS // 2
            start, stop, ended = self._at, limit, False
            for mark in _MARKS.finditer(self._text, start):
                if mark.start() >= limit:
                    break
                begins = num_skipped == 0 and mark.start() == start  # a stray mark there is a part of the value
                if brackets.outside(mark.group()) and not begins:
                    stop, ended = mark.start(), True
                elif brackets.step(mark.group()):
                    stop, ended = mark.end(), True
                if ended:
                    break
                stop = max(limit, mark.end())
            num_skipped += stop - start
            self._move(stop)
            if ended or (self._ended and self._at >= len(self._text)):
                return num_skipped


class _Brackets:
    """The brackets that are open, where they may not match: a closing one also closes those left open inside."""

    def __init__(self) -> None:
        self._open = bytearray()
        self._num_open = {"[": 0, "{": 0}

    def outside(self, mark: str) -> bool:
        """Whether this mark belongs to the list around the value."""
        return (mark == "," and not self._open) or (mark == "]" and not self._num_open["["])

    def step(self, mark: str) -> bool:
        """Take a mark in; True when the value ends with it."""
        if mark in self._num_open:
            self._open += mark.encode()
            self._num_open[mark] += 1
        elif mark in _CLOSES:
            opening = _CLOSES[mark]
            if not self._num_open[opening]:
                return not self._open
            while self._open:
                closed = chr(self._open.pop())
                self._num_open[closed] -= 1
                if closed == opening:
                    return not self._open
        return False
