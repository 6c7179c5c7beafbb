"""Files that are uploaded as multipart/form-data (RFC 7578), handed on while they arrive.

The bodies of these few addresses are not read by access.py: their bounds in size and time are here. What a client calls
its file is a text like any other and never becomes a path.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.types import Scope

from mini_claude.errors import PayloadTooLarge
from mini_claude.web.error_handlers import HTTPStatusError, WrongShape

DATASETS_PATH: Final = "/api/v1/datasets"
ADAPTERS_PATH: Final = "/api/v1/models/adapters"
PAGE_UPLOAD_PATH: Final = "/gradio_api/upload"  # passed on to the page's process by page_line.py
FORM_BYTES: Final = 65_536  # what a form may hold besides its file
IDLE_SECONDS: Final = 30.0
MIN_BYTES_PER_SECOND: Final = 65_536  # on the whole
_MAX_FIELD_BYTES: Final = 1024
_WRITE_BYTES: Final = 1_048_576  # handed to a thread at once


@dataclass(frozen=True, slots=True)
class FormShape:
    """What an upload has to consist of. All files are required, and no field is."""

    files: tuple[str, ...]  # the main one first
    fields: tuple[str, ...]
    limit: str  # the setting that bounds the size
    sentence: str  # what to send


def is_upload(scope: Scope) -> bool:
    """Whether this request's body is read here."""
    return bool(scope["method"] == "POST" and scope["path"] in (DATASETS_PATH, ADAPTERS_PATH, PAGE_UPLOAD_PATH))


def announced_bytes(request: Request, shape: FormShape, max_bytes: int) -> int:
    """The length that the request announces, 0 where it says none. Raises `PayloadTooLarge`."""
    announced = request.headers.get("content-length", "0")
    plausible = announced.isascii() and announced.isdigit() and len(announced) <= 15
    if not plausible or int(announced) > max_bytes + FORM_BYTES:
        raise _too_large(shape, max_bytes)
    return int(announced)


async def receive_upload(
    request: Request, shape: FormShape, write: Callable[[str, bytes], None], max_bytes: int
) -> "UploadForm":
    """Give what comes of each of the form's files to `write`, which may block; the form's other fields.

    `max_bytes` bounds all files together.

    Raises `WrongShape` for a form that is none, `PayloadTooLarge`, `StorageError`, `HTTPStatusError` 408 for a body
    that is too slow, `ClientDisconnect`.
    """
    form = UploadForm(request.headers.get("content-type", ""), shape)
    num_bytes = 0
    async with aclosing(paced(request.stream())) as body:
        async for chunk in body:
            num_bytes += len(chunk)
            if num_bytes > max_bytes + FORM_BYTES:
                raise _too_large(shape, max_bytes)
            form.feed(chunk)
            if form.num_held >= _WRITE_BYTES:
                await run_sync(_write_all, write, form.take_content())
    form.close()
    await run_sync(_write_all, write, form.take_content())
    return form


async def paced(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The body's pieces as they come. Raises `HTTPStatusError` 408 where they stall or are too slow on the whole."""
    now = asyncio.get_running_loop().time
    started = now()
    num_bytes = 0
    while True:
        deadline = started + IDLE_SECONDS + num_bytes / MIN_BYTES_PER_SECOND
        try:
            async with asyncio.timeout_at(min(now() + IDLE_SECONDS, deadline)):
                chunk = await anext(body, None)
        except TimeoutError as error:
            raise HTTPStatusError(408, "The file did not arrive in time: send it faster.", "request_timeout") from error
        if chunk is None:
            return
        num_bytes += len(chunk)
        yield chunk


def _write_all(write: Callable[[str, bytes], None], pieces: list[tuple[str, bytes]]) -> None:
    for part, data in pieces:
        write(part, data)


def _too_large(shape: FormShape, max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The upload is larger than {max_bytes} bytes ({shape.limit}): make it smaller.", param=shape.files[0]
    )


class UploadForm:
    """Parses the form piece by piece, and holds what has come of its files since that was last taken."""

    def __init__(self, content_type: str, shape: FormShape) -> None:
        """Raises `WrongShape` for a content type that is no form's."""
        self._shape = shape
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise WrongShape(shape.sentence, code="invalid_form", param=shape.files[0])
        self.file_names: dict[str, str] = {}
        self.num_held = 0  # bytes
        self._content: list[tuple[str, bytearray]] = []
        self._fields: dict[str, bytearray] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._part = ""
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._extend(self._header_name, data, start, end),
                    "on_header_value": lambda data, start, end: self._extend(self._header_value, data, start, end),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._part_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise WrongShape(shape.sentence, code="invalid_form", param=shape.files[0]) from error

    def field(self, name: str) -> str | None:
        """The field's text, None where it was not sent or is empty."""
        field = self._fields.get(name)
        return None if not field else field.decode("utf-8", "replace")

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the body. Raises `WrongShape`."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise WrongShape(
                f"The form is broken. {self._shape.sentence}", code="invalid_form", param=self._shape.files[0]
            ) from error

    def take_content(self) -> list[tuple[str, bytes]]:
        """What has come of the files, once: pieces in order, each with its file's part of the form."""
        content = [(part, bytes(data)) for part, data in self._content]
        self._content.clear()
        self.num_held = 0
        return content

    def close(self) -> None:
        """The body is over. Raises `WrongShape` when the form is not, or lacks a file."""
        if not self._ended:
            raise WrongShape(
                "The form ends in the middle: send all of it.", code="invalid_form", param=self._shape.files[0]
            )
        if missing := [part for part in self._shape.files if part not in self.file_names]:
            raise WrongShape(
                f"'{missing[0]}' is required. {self._shape.sentence}",
                code="missing_required_parameter",
                param=missing[0],
            )

    def _begin_part(self) -> None:
        self._disposition = b""

    @staticmethod
    def _extend(text: bytearray, data: bytes, start: int, end: int) -> None:
        text += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        part = options.get(b"name", b"").decode("utf-8", "replace")
        if part not in self._shape.files + self._shape.fields:
            raise WrongShape(
                f"Unknown parameter: '{part[:64]}'. {self._shape.sentence}", code="unknown_parameter", param=part[:64]
            )
        if part in self._fields or part in self.file_names:
            raise WrongShape(f"'{part}' was sent twice.", code="invalid_form", param=part)
        self._part = part
        if part in self._shape.files:
            self.file_names[part] = options.get(b"filename", b"").decode("utf-8", "replace")
            self._content.append((part, bytearray()))
        else:
            self._fields[part] = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part in self._shape.files:
            if not self._content:  # the earlier pieces have been taken
                self._content.append((self._part, bytearray()))
            self._content[-1][1].extend(data[start:end])
            self.num_held += end - start
            return
        self._fields[self._part] += data[start:end]
        if len(self._fields[self._part]) > _MAX_FIELD_BYTES:
            raise WrongShape(f"'{self._part}' is longer than {_MAX_FIELD_BYTES} bytes.", param=self._part)

    def _end(self) -> None:
        self._ended = True
