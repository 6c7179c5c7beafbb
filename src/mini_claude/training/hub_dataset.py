"""A dataset of the hub as a JSONL file: through the `datasets` library, without running anything of the dataset's own.

For terminal commands only: no client of the server can make it reach out.
"""

import json
from pathlib import Path
from typing import Any, Final

from mini_claude.errors import InvalidRequest, PayloadTooLarge
from mini_claude.training.row_formats import COLUMNS

DEFAULT_SPLIT: Final = "train"
# Readers of plain data. Others unpack archives, pictures and sound, which is no training data for a language model.
_READERS: Final = frozenset({"arrow", "csv", "json", "parquet", "text"})


def write_hub_rows(source: str, split: str, target: Path, max_bytes: int) -> int:
    """Write a split's rows, with those columns that training data has, to `target`; the number of rows.

    `source` is a hub id or a folder. Raises `InvalidRequest` where it cannot be had or holds something else,
    `PayloadTooLarge` for more than `max_bytes`.
    """
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(source)
    except Exception as error:  # the library raises anything from ConnectionError to its own
        raise InvalidRequest(
            f"The dataset {source!r} cannot be had ({error}); check its name and the connection to the hub.",
            param="source",
        ) from error
    if builder.name not in _READERS:
        raise InvalidRequest(
            f"{source!r} holds {builder.name} and no table or text; what can be read is {', '.join(sorted(_READERS))}.",
            param="source",
        )
    try:
        rows = builder.as_streaming_dataset(split=split)
    except ValueError as error:
        raise InvalidRequest(f"{source!r} has no split {split!r}: {error}", param="source") from error
    num_rows = num_bytes = 0
    with target.open("wb") as file:
        for row in rows:
            line = _line(row, num_rows + 1)
            num_rows, num_bytes = num_rows + 1, num_bytes + len(line)
            if num_bytes > max_bytes:
                raise PayloadTooLarge(
                    f"{source!r} has more than {max_bytes} bytes (max_dataset_bytes); take a part of it, as in "
                    f"hub:{source}:{split}[:1000].",
                    param="source",
                )
            file.write(line)
    return num_rows


def _line(row: dict[str, Any], number: int) -> bytes:
    known = {name: value for name, value in row.items() if name in COLUMNS}
    try:
        return json.dumps(known, ensure_ascii=False).encode() + b"\n"
    except TypeError as error:
        raise InvalidRequest(f"Row {number} holds something else than text: {error}.", param="source") from error
