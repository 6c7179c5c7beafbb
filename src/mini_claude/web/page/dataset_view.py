"""A dataset in plain words: what was found in the file, and what is wrong with which row."""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from mini_claude.data.records import Dataset
from mini_claude.training.examples import Container, DatasetFormat
from mini_claude.web.page.counted import counted

FORMATS: Final[dict[DatasetFormat, str]] = {
    "messages": "chat messages",
    "sharegpt": "conversations in ShareGPT's form",
    "alpaca": "instructions with answers (Alpaca)",
    "prompt_completion": "prompts with completions",
    "dialogue": "dialogues, turn by turn",
    "preference": "preferences: a better and a worse answer",
    "text": "plain texts",
}
_CONTAINERS: Final[dict[Container, str]] = {
    "jsonl": "JSON lines",
    "json": "a JSON file",
    "csv": "a table (CSV)",
    "parquet": "a table (Parquet)",
    "text": "a text file",
}


def dataset_html(dataset: Dataset) -> str:
    """Facts and problems."""
    rows = f"{dataset.num_rows:,} row{'' if dataset.num_rows == 1 else 's'}"
    facts = (
        f"<h3>{escape(dataset.name)}</h3><p><b>{rows}</b> of <b>{FORMATS[dataset.format]}</b> "
        f"in {_CONTAINERS[dataset.container]}, {size_of(dataset.num_bytes)}, from {escape(dataset.file_name)} "
        f'<span class="facts">sha256 {dataset.sha256[:12]}</span></p>'
    )
    return facts + _problems(dataset)


def _problems(dataset: Dataset) -> str:
    if not dataset.num_broken:
        return '<p><span class="badge good">all rows can be used</span></p>'
    rows = "".join(
        f"<tr><td>{problem.row}</td><td>{'' if problem.line is None else problem.line}</td>"
        f"<td>{escape(problem.reason)}</td></tr>"
        for problem in dataset.problems
    )
    more = dataset.num_broken - len(dataset.problems)
    rest = f"<p class='facts'>and {more:,} more</p>" if more > 0 else ""
    return (
        f'<p><span class="badge bad">{dataset.num_broken:,} of {dataset.num_rows:,} rows cannot be used</span> '
        "Mend them in the file and add it again, or let training leave them out.</p>"
        '<div class="scroll"><table class="plain"><thead><tr><th>row</th><th>line</th><th>what is wrong</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>{rest}"
    )


def items_of(datasets: Sequence[Dataset], current: str | None) -> list[dict[str, Any]]:
    """The value of the list of datasets."""
    return [
        {
            "id": dataset.name,
            "title": dataset.name,
            "note": f"{counted(dataset.num_rows, 'row')} · {FORMATS[dataset.format]}"
            + (f" · {dataset.num_broken:,} broken" if dataset.num_broken else ""),
            "current": "true" if dataset.name == current else "false",
        }
        for dataset in datasets
    ]


def size_of(num_bytes: int) -> str:
    """For people, in units of thousands."""
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
