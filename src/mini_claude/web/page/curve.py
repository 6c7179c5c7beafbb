"""A curve over the steps of a run as SVG: no script, nothing to fetch, colours that stand on light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Final

_WIDTH: Final = 420  # in units of the drawing, which is as wide as its column
_HEIGHT: Final = 200
_LEFT: Final = 52  # room for the numbers
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 24
_COLOURS: Final = ("#2563eb", "#d97706", "#059669")
MAX_POINTS: Final = 400  # of a line: more than the drawing can show
Points = Sequence[tuple[float, float]]


def curve(title: str, lines: Mapping[str, Points], num_steps: int) -> str:
    """A <figure> of lines of (step, value) from 0 to `num_steps` and from 0 up; the legend has the latest values."""
    highest = max((value for points in lines.values() for _, value in points), default=0.0) * 1.05 or 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return _LEFT + width * min(1.0, point[0] / max(1, num_steps)), _TOP + height * (1 - point[1] / highest)

    parts = [_axes(highest, num_steps, width, height)]
    legend = []
    for (name, points), colour in zip(lines.items(), cycle(_COLOURS), strict=False):
        drawn = [at(point) for point in thinned(points)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(drawn) <= 40:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in drawn]
        latest = number(points[-1][1]) if points else "–"
        legend.append(f'<li><i style="background:{colour}"></i>{escape(name)} <b>{latest}</b></li>')
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}<ul>{''.join(legend)}</ul></figure>"


def thinned(points: Points) -> Points:
    """Evenly, with the first and the last."""
    if len(points) <= MAX_POINTS:
        return points
    distance = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(index * distance)] for index in range(MAX_POINTS)]


def _axes(highest: float, num_steps: int, width: float, height: float) -> str:
    parts = []
    for step in range(5):
        y = _TOP + height * (1 - step / 4)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(highest * step / 4)}</text>'
        )
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">0</text>')
    parts.append(f'<text x="{_LEFT + width}" y="{_HEIGHT - 6}" text-anchor="end">step {num_steps:,}</text>')
    return "".join(parts)


def number(value: float) -> str:
    """A few digits that matter, short enough for the room beside the axis."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if abs(value) < 1e-2 else f"{value:,.3g}"
