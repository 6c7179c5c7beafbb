"""A curve over the steps of a run."""

from collections.abc import Mapping
from typing import Final

from mini_claude.web.page.line_figure import Points, line_figure

MAX_POINTS: Final = 400  # of a line: more than the drawing can show


def curve(title: str, lines: Mapping[str, Points], num_steps: int) -> str:
    """A <figure> of lines of (step, value) from 0 to `num_steps` and from 0 up."""
    return line_figure(
        title,
        {name: thinned(points) for name, points in lines.items()},
        place=lambda step: min(1.0, step / max(1, num_steps)),
        ends=("0", f"step {num_steps:,}"),
        highest=max((value for points in lines.values() for _, value in points), default=0.0) * 1.05 or 1.0,
        label=number,
        dots=True,
    )


def thinned(points: Points) -> Points:
    """Evenly, with the first and the last."""
    if len(points) <= MAX_POINTS:
        return points
    distance = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(index * distance)] for index in range(MAX_POINTS)]


def number(value: float) -> str:
    """A few digits that matter, short enough for the room beside the axis."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if abs(value) < 1e-2 else f"{value:,.3g}"
