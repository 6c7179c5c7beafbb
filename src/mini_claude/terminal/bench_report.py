"""The figures of `mini-claude bench` as one HTML file: plots and a table, nothing to fetch and no script."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from mini_claude.errors import StorageError
from mini_claude.terminal.line_plot import line_plot
from mini_claude.terminal.measurement import Measurement

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
figure {{ display: inline-block; margin: 0 1rem 1rem 0; }}
svg {{ width: 460px; max-width: 100%; }}
svg text {{ fill: currentColor; font-size: 12px; }}
td, th {{ padding: .2rem .8rem; text-align: right; }}
</style>
<h1>{title}</h1>
{plots}
{table}
</html>
"""


def write_report(path: Path, title: str, results: Sequence[Measurement]) -> None:
    """Raises `StorageError` where the file cannot be written."""
    levels = [str(result.concurrency) for result in results]
    plots = [
        _figure("Tokens per second, all clients together", levels, {"": [r.tokens_per_second for r in results]}),
        _figure(
            "Time to first token (ms)",
            levels,
            {"p50": [r.first_p50 for r in results], "p95": [r.first_p95 for r in results]},
        ),
        _figure(
            "Time between tokens (ms)",
            levels,
            {
                "p50": [r.between_p50 for r in results],
                "p95": [r.between_p95 for r in results],
                "p99": [r.between_p99 for r in results],
            },
        ),
        _figure("Memory of the engine (MB)", levels, {"": [r.memory_mb for r in results]}),
    ]
    page = _PAGE.format(title=escape(title), plots="\n".join(plots), table=_html_table(results))
    try:
        path.write_text(page)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from error


def _figure(caption: str, levels: Sequence[str], lines: Mapping[str, Sequence[float]]) -> str:
    drawing = line_plot(caption, "clients at once", levels, lines)
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _html_table(results: Sequence[Measurement]) -> str:
    heads = ("clients", "tokens/s", "first p50", "first p95", "between p50", "p95", "p99", "memory (MB)")
    rows = [
        (
            f"{result.concurrency}",
            f"{result.tokens_per_second:.1f}",
            *(f"{value:.1f}" for value in (result.first_p50, result.first_p95)),
            *(f"{value:.1f}" for value in (result.between_p50, result.between_p95, result.between_p99)),
            f"{result.memory_mb:.0f}",
        )
        for result in results
    ]
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
