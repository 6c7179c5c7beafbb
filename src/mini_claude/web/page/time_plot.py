"""A line plot over the last minutes."""

from collections.abc import Mapping

from mini_claude.web.page.line_figure import Points, line_figure


def time_plot(title: str, unit: str, lines: Mapping[str, Points], *, now: float, seconds: float, top: float = 0) -> str:
    """A <figure>: lines of (Unix time, value) over the `seconds` until `now`, up to `top` or the highest value."""
    return line_figure(
        title,
        lines,
        place=lambda at: max(0.0, 1 - (now - at) / seconds),
        ends=(f"{round(seconds / 60)} min ago", "now"),
        highest=max([top, *(value for points in lines.values() for _, value in points)]) or 1.0,
        label=_number,
        unit=unit,
        num_marks=2,
        height=150,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.2g}"
