"""Lines over something as SVG: no script, nothing to fetch, colours that stand on light and dark."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Final

Points = Sequence[tuple[float, float]]

_WIDTH: Final = 420  # in units of the drawing, which is as wide as its column
_LEFT: Final = 52  # room for the numbers
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 24
_COLOURS: Final = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2")
_MAX_DOTS: Final = 40  # a line of more points shows no single ones


def line_figure(
    title: str,
    lines: Mapping[str, Points],
    *,
    place: Callable[[float], float],
    ends: tuple[str, str],
    highest: float,
    label: Callable[[float], str],
    unit: str = "",
    num_marks: int = 4,
    height: int = 200,
    dots: bool = False,
) -> str:
    """A <figure> whose legend has each line's latest value.

    `place` puts a point's first number between 0 (left) and 1 (right), which `ends` name; the vertical axis runs from
    0 to `highest` in `num_marks` steps, whose numbers `label` writes.
    """
    wide, high = _WIDTH - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return _LEFT + wide * place(point[0]), _TOP + high * (1 - point[1] / highest)

    parts = []
    for mark in range(num_marks + 1):
        y = _TOP + high * (1 - mark / num_marks)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label(highest * mark / num_marks)}</text>'
        )
    parts.append(f'<text x="{_LEFT}" y="{height - 6}">{escape(ends[0])}</text>')
    parts.append(f'<text x="{_LEFT + wide}" y="{height - 6}" text-anchor="end">{escape(ends[1])}</text>')
    legend = []
    for (name, points), colour in zip(lines.items(), cycle(_COLOURS), strict=False):
        drawn = [at(point) for point in points]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if dots and len(drawn) <= _MAX_DOTS:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in drawn]
        latest = f"{label(points[-1][1])} {unit}".rstrip() if points else "–"
        legend.append(f'<li><i style="background:{colour}"></i>{escape(name)} <b>{escape(latest)}</b></li>')
    drawing = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}<ul>{''.join(legend)}</ul></figure>"
