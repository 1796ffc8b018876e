"""A line chart as inline SVG: values over time, one line per series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from lmcache_kit.builtin.reporters.cells import duration

__all__ = ["COLOURS", "lines"]

COLOURS = 8
"""How many series have a colour of their own; the page's style has s0 to s7."""

_HEIGHT, _TOP, _FOOT = 150, 26, 20
_WIDE = 1000
"""Units of the plot's width; it is stretched to the page, lines and letters are not."""

Point = tuple[float, float | None]


def lines(
    title: str, series: Sequence[tuple[str, Sequence[Point]]], show: Callable[[float], str], *, top: float | None = None
) -> str:
    """Lines from 0 to the largest value; a gap where a value is None.

    Args:
        title: what the chart shows; also read by screen readers.
        series: name of each and its points, ``(seconds, value)`` in the order of time; at most eight.
        show: how a value is written.
        top: value of the upper edge; the largest one when None.
    """
    values = [value for _, points in series for _, value in points if value is not None]
    times = [time for _, points in series for time, _ in points]
    largest = top or max(values, default=0.0) or 1.0
    begin, end = min(times, default=0.0), max(times, default=0.0)
    paths = "".join(
        f'<path d="{_path(points, begin, end, largest)}" class="l{index}"><title>{escape(name)}</title></path>'
        for index, (name, points) in enumerate(series[:COLOURS])
    )
    low, bottom = _TOP + _HEIGHT, _TOP + _HEIGHT + _FOOT
    parts = [
        *(_legend([name for name, _ in series[:COLOURS]]) if len(series) > 1 else ()),
        f'<line x1="0" x2="100%" y1="{_TOP}" y2="{_TOP}" class="grid"/>',
        f'<line x1="0" x2="100%" y1="{low}" y2="{low}" class="grid"/>',
        f'<svg x="0" y="{_TOP}" width="100%" height="{_HEIGHT}" viewBox="0 0 {_WIDE} {_HEIGHT}" '
        f'preserveAspectRatio="none" class="plot">{paths}</svg>',
        f'<text x="100%" y="13" text-anchor="end" class="value">{escape(show(largest))}</text>',
        f'<text x="0" y="{bottom - 5}" class="value">{escape(duration(begin))}</text>',
        f'<text x="100%" y="{bottom - 5}" text-anchor="end" class="value">{escape(duration(end))}</text>',
    ]
    head = f'<svg width="100%" height="{bottom}" role="img" aria-label="{escape(title)}" class="chart">'
    svg = f"{head}{''.join(parts)}</svg>"
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _path(points: Sequence[Point], begin: float, end: float, largest: float) -> str:
    parts = []
    drawing = False
    for time, value in points:
        if value is None:
            drawing = False
            continue
        x = _WIDE * (time - begin) / (end - begin) if end > begin else 0.0
        y = _HEIGHT * (1 - min(max(value / largest, 0.0), 1.0))
        # A point by itself is drawn as a line of no length, which its round ends make a dot.
        parts.append(f"{'L' if drawing else 'M'}{x:.1f} {y:.1f}" + ("" if drawing else "h0"))
        drawing = True
    return "".join(parts)


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], 0.0
    for index, name in enumerate(names):
        parts.append(
            f'<rect x="{x:.0f}" y="4" width="10" height="10" rx="2" class="s{index}"/>'
            f'<text x="{x + 15:.0f}" y="13" class="value">{escape(name)}</text>'
        )
        x += 15 + 7 * len(name) + 22
    return parts
