"""A bar chart as inline SVG: bytes before and after, or latencies, one row per result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

__all__ = ["bars"]

ROW, BAR, LABEL, PLOT, VALUE = 46, 14, 130, 460, 110


def bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    show: Callable[[float], str],
) -> str:
    """Horizontal bars, grouped by row, from 0 to the largest value.

    Args:
        title: what the chart shows; also read by screen readers.
        rows: label of each row and its series, ``(name, value)``.
        show: how a value is written at the end of its bar.
    """
    series = list(dict.fromkeys(name for _, values in rows for name, _ in values))
    largest = max((value for _, values in rows for _, value in values), default=0.0) or 1.0
    width, top = LABEL + PLOT + VALUE, 26
    height = top + ROW * len(rows) + 6
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" class="chart">',
        *_legend(series),
    ]
    for index, (label, values) in enumerate(rows):
        y = top + index * ROW
        middle = y + (len(values) * (BAR + 2)) / 2 + 4
        parts.append(f'<text x="{LABEL - 10}" y="{middle:.1f}" text-anchor="end" class="label">{escape(label)}</text>')
        for number, (name, value) in enumerate(values):
            length = max(PLOT * value / largest, 1.0)
            line = y + number * (BAR + 2)
            parts.append(
                f'<rect x="{LABEL}" y="{line}" width="{length:.1f}" height="{BAR}" rx="2" '
                f'class="s{series.index(name)}"><title>{escape(f"{label}, {name}: {show(value)}")}</title></rect>'
                f'<text x="{LABEL + length + 6:.1f}" y="{line + BAR - 3}" class="value">{escape(show(value))}</text>'
            )
    parts.append("</svg>")
    return f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}</figure>"


def _legend(series: Sequence[str]) -> list[str]:
    parts, x = [], float(LABEL)
    for index, name in enumerate(series):
        parts.append(
            f'<rect x="{x:.0f}" y="4" width="10" height="10" rx="2" class="s{index}"/>'
            f'<text x="{x + 15:.0f}" y="13" class="value">{escape(name)}</text>'
        )
        x += 15 + 7 * len(name) + 22
    return parts
