"""A bar chart as inline SVG: bytes before and after, or latencies, one group of bars per result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

__all__ = ["bars"]

LEGEND, LABEL, BAR, GAP = 26, 18, 14, 2
_ROOM = 78.0
"""Percent of the width that the longest bar takes; its value stands beside it."""


def bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    show: Callable[[float], str],
) -> str:
    """Horizontal bars, grouped by row, from 0 to the largest value.

    Widths are percentages and heights are pixels, so a narrow page gets shorter bars and not smaller letters.

    Args:
        title: what the chart shows; also read by screen readers.
        rows: label of each row and its series, ``(name, value)``.
        show: how a value is written at the end of its bar.
    """
    series = list(dict.fromkeys(name for _, values in rows for name, _ in values))
    largest = max((value for _, values in rows for _, value in values), default=0.0) or 1.0
    parts = _legend(series)
    y = LEGEND
    for label, values in rows:
        parts.append(f'<text x="0" y="{y + LABEL - 5}" class="label">{escape(label)}</text>')
        y += LABEL
        for name, value in values:
            length = max(_ROOM * value / largest, 0.2)
            parts.append(
                f'<rect x="0" y="{y}" width="{length:.2f}%" height="{BAR}" rx="2" class="s{series.index(name)}">'
                f"<title>{escape(f'{label}, {name}: {show(value)}')}</title></rect>"
                f'<text x="{length:.2f}%" dx="6" y="{y + BAR - 3}" class="value">{escape(show(value))}</text>'
            )
            y += BAR + GAP
        y += 8
    svg = f'<svg width="100%" height="{y}" role="img" aria-label="{escape(title)}" class="chart">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _legend(series: Sequence[str]) -> list[str]:
    parts, x = [], 0.0
    for index, name in enumerate(series):
        parts.append(
            f'<rect x="{x:.0f}" y="4" width="10" height="10" rx="2" class="s{index}"/>'
            f'<text x="{x + 15:.0f}" y="13" class="value">{escape(name)}</text>'
        )
        x += 15 + 7 * len(name) + 22
    return parts
