"""The figures of `mini-claude bench` as one HTML file: plots in SVG and a table, nothing to fetch and no script."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from mini_claude.errors import StorageError
from mini_claude.terminal.measurement import Measurement

_WIDTH: Final = 460  # of a plot, in CSS pixels
_HEIGHT: Final = 260
_LEFT: Final = 60  # room for the numbers at the axes
_BOTTOM: Final = 36
_TOP: Final = 16
_COLOURS: Final = ("#2563eb", "#d97706", "#dc2626")
_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
figure {{ display: inline-block; margin: 0 1rem 1rem 0; }}
svg {{ width: {width}px; max-width: 100%; }}
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
    page = _PAGE.format(title=escape(title), width=_WIDTH, plots="\n".join(plots), table=_html_table(results))
    try:
        path.write_text(page)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from error


def _figure(caption: str, levels: Sequence[str], lines: Mapping[str, Sequence[float]]) -> str:
    """A line plot over the number of clients, which stand at equal distances. The vertical axis begins at 0."""
    top = max(max(values) for values in lines.values()) * 1.1 or 1.0
    width, height = _WIDTH - _LEFT - 50, _HEIGHT - _BOTTOM - _TOP

    def x(index: int) -> float:
        return _LEFT + width * (index + 0.5) / len(levels)

    def y(value: float) -> float:
        return _TOP + height * (1 - value / top)

    parts = []
    for step in range(5):
        value = top * step / 4
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#8884"/>'
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for index, level in enumerate(levels):
        parts.append(f'<text x="{x(index):.1f}" y="{_TOP + height + 20}" text-anchor="middle">{level}</text>')
    for (name, values), colour in zip(lines.items(), _COLOURS, strict=False):
        points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(index):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}">'
            f"<title>{value:.1f}</title></circle>"
            for index, value in enumerate(values)
        ]
        parts.append(
            f'<text x="{x(len(levels) - 1) + 8:.1f}" y="{y(values[-1]) + 4:.1f}" style="fill:{colour}">{name}</text>'
        )
    parts.append(f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 2}" text-anchor="middle">clients at once</text>')
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(caption)}">{"".join(parts)}</svg>'
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
