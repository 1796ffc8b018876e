"""Charts of what a result carries over time: its ``windows``, a list of objects with a ``start_seconds`` each.

What a window holds is the workload's business: numbers of one meaning share a chart, told by their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lmcache_kit.builtin.reporters.cells import duration
from lmcache_kit.builtin.reporters.lines import COLOURS, Point, lines
from lmcache_kit.units import format_size

__all__ = ["windows_charts"]

_NOT_DRAWN = frozenset({"start", "end", "start_seconds", "end_seconds", "seconds"})
_PERCENTILE = re.compile(r"_(p\d+|mean|min|max)(?=_|$)")


def windows_charts(result: Mapping[str, Any]) -> list[str]:
    """The charts of one result; none where it has no windows or they are of another form."""
    found = result.get("windows")
    windows = [
        (start, each)
        for each in (found if isinstance(found, list) else ())
        if isinstance(each, Mapping) and (start := _number(each.get("start_seconds", each.get("start")))) is not None
    ]
    if len(windows) < 2:
        return []
    name = str(result["name"])
    return [_chart(f"{name}: {title}", series) for title, series in _grouped(windows)]


def _grouped(windows: Sequence[tuple[float, Mapping[str, Any]]]) -> Iterator[tuple[str, dict[str, list[Point]]]]:
    """Title and series of each chart, in the order in which the windows name them."""
    charts: dict[str, dict[str, list[Point]]] = {}
    keys = dict.fromkeys(key for _, window in windows for key in window if key not in _NOT_DRAWN)
    for key in keys:
        values = [(start, window.get(key)) for start, window in windows]
        if any(isinstance(value, Mapping) for _, value in values):
            parts = dict.fromkeys(part for _, value in values if isinstance(value, Mapping) for part in value)
            below = {
                part: [(at, _number(value.get(part)) if isinstance(value, Mapping) else None) for at, value in values]
                for part in parts
            }
            charts.setdefault(key, {}).update({part: points for part, points in below.items() if _drawn(points)})
        else:
            points = [(at, _number(value)) for at, value in values]
            if _drawn(points):
                title, series = _title(key)
                charts.setdefault(title, {})[series] = points
    yield from ((title, series) for title, series in charts.items() if series)


def _title(key: str) -> tuple[str, str]:
    """Chart and series of a number: ``ttft_p50_seconds`` is p50 of ttft seconds, all rates share a chart."""
    percentile = _PERCENTILE.search(key)
    if percentile is not None:
        return _PERCENTILE.sub("", key, count=1), percentile[1]
    if key.endswith("hit_rate"):
        return "hit rates", key
    return ("tokens", key.removesuffix("_tokens")) if key.endswith("_tokens") else (key, key)


def _chart(title: str, series: Mapping[str, Sequence[Point]]) -> str:
    shown = list(series.items())[:COLOURS]
    more = f" (the first {COLOURS} of {len(series)})" if len(series) > COLOURS else ""
    words = title.removesuffix("_seconds").replace("_", " ")
    alone = shown[0][0].replace("_", " ") if len(shown) == 1 else ""
    if alone and alone not in words and words.rpartition(": ")[2] not in alone:
        words = f"{words} {alone}"
    rates = title.endswith(("rate", "rates")) or "hit_rate" in title
    return lines(
        f"{words}{more}",
        [(name.replace("_", " "), points) for name, points in shown],
        _unit(title),
        top=1.0 if rates else None,
    )


def _unit(title: str) -> Callable[[float], str]:
    if title.endswith("seconds"):
        return duration
    if "bytes" in title:
        return format_size
    return lambda value: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _drawn(points: Sequence[Point]) -> bool:
    # What never happened needs no chart, nor a line along the bottom of one.
    return any(value for _, value in points)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
