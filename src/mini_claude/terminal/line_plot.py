"""A line plot as SVG: no script, no fonts to fetch, colours that stand on light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

_WIDTH: Final = 460  # in CSS pixels
_HEIGHT: Final = 260
_LEFT: Final = 60  # room for the numbers at the axes
_BOTTOM: Final = 36
_TOP: Final = 16
_COLOURS: Final = ("#2563eb", "#d97706", "#dc2626")


def line_plot(title: str, axis: str, levels: Sequence[str], lines: Mapping[str, Sequence[float]]) -> str:
    """An SVG element. `levels` stand at equal distances on the horizontal `axis`; the vertical one begins at 0."""
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
    parts.append(f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 2}" text-anchor="middle">{escape(axis)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    return f'{head} aria-label="{escape(title)}">{"".join(parts)}</svg>'
