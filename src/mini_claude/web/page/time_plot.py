"""A line plot over the last minutes as SVG: no script, nothing to fetch, colours that stand on light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Final

_WIDTH: Final = 420  # in units of the drawing, which is as wide as its column
_HEIGHT: Final = 150
_LEFT: Final = 46  # room for the numbers
_RIGHT: Final = 8
_TOP: Final = 10
_BOTTOM: Final = 22
_COLOURS: Final = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2")
Points = Sequence[tuple[float, float]]


def time_plot(title: str, unit: str, lines: Mapping[str, Points], *, now: float, seconds: float, top: float = 0) -> str:
    """A <figure>: lines of (Unix time, value) over the `seconds` until `now`, from 0 to `top` or to the highest value.

    The legend has each line's latest value.
    """
    highest = max([top, *(value for points in lines.values() for _, value in points)]) or 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(point: tuple[float, float]) -> str:
        x = _LEFT + width * (1 - (now - point[0]) / seconds)
        return f"{max(_LEFT, x):.1f},{_TOP + height * (1 - point[1] / highest):.1f}"

    parts = [_axes(highest, width, height, seconds)]
    legend = []
    for (name, points), colour in zip(lines.items(), cycle(_COLOURS), strict=False):
        drawn = " ".join(at(point) for point in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        latest = f"{_number(points[-1][1])} {unit}" if points else "–"
        legend.append(f'<li><i style="background:{colour}"></i>{escape(name)} <b>{escape(latest)}</b></li>')
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}<ul>{''.join(legend)}</ul></figure>"


def _axes(highest: float, width: float, height: float, seconds: float) -> str:
    parts = []
    for step in range(3):
        y = _TOP + height * (1 - step / 2)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(highest * step / 2)}</text>'
        )
    minutes = round(seconds / 60)
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 5}">{minutes} min ago</text>')
    parts.append(f'<text x="{_LEFT + width}" y="{_HEIGHT - 5}" text-anchor="end">now</text>')
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.2g}"
