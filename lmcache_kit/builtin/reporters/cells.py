"""What the table and the page show of each result, and how numbers are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmcache_kit.units import format_size

__all__ = [
    "COLUMNS",
    "FACTS",
    "NUMERIC",
    "cells",
    "detail",
    "duration",
    "expectation_cells",
    "facts",
    "flat",
]

NUMERIC = frozenset({"tokens", "before", "after", "ratio", "seconds", "p50", "p90", "p99", "TTFT cold", "TTFT cached"})
COLUMNS = (
    "result",
    "tokens",
    "before",
    "after",
    "ratio",
    "seconds",
    "p50",
    "p90",
    "p99",
    "TTFT cold",
    "TTFT cached",
)
FACTS = ("result", "counts", "worth knowing")
_SHOWN_IN_CELLS = frozenset({"name", "kind", "counts", "tokens", "bytes_before", "bytes_after", "ratio", "seconds"})
# Of whatever a workload reports beside the common values, these fit on a line.
_WORTH = ("hit_rate", "ttft_ratio", "verified", "all_found", "method")


def duration(seconds: float | None) -> str:
    """A duration in the unit that reads best."""
    if seconds is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns" if seconds else "0 s"


def cells(result: Mapping[str, Any]) -> list[str]:
    """One line of the results table."""
    latency = result.get("latency_seconds") or {}
    ratio = result.get("ratio")
    return [
        str(result["name"]),
        f"{result['tokens']:,}" if isinstance(result.get("tokens"), int) else "-",
        _size(result.get("bytes_before")),
        _size(result.get("bytes_after")),
        "-" if ratio is None else f"{ratio:.3g}",
        duration(result.get("seconds")),
        *(duration(latency.get(percentile)) for percentile in ("p50", "p90", "p99")),
        *(duration((result.get(f"ttft_{which}_seconds") or {}).get("p50")) for which in ("cold", "cached")),
    ]


def facts(result: Mapping[str, Any]) -> list[str]:
    """One line of the table beside it: how many of what, and what is special to the workload."""
    counts: Mapping[str, int] = result.get("counts") or {}
    worth = [f"{key.replace('_', ' ')} {detail(result[key])}" for key in _WORTH if result.get(key) is not None]
    if result.get("text_equal_count") is not None:
        worth.append(f"same text {result['text_equal_count']} of {counts.get('requests')}")
    return [
        str(result["name"]),
        ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()),
        ", ".join(worth),
    ]


def expectation_cells(outcome: Mapping[str, Any]) -> list[str]:
    """One line of the expectations table."""
    got = outcome.get("problem") or detail(outcome.get("got"))
    return [str(outcome["path"]), detail(outcome["wanted"]), got, "met" if outcome["met"] else "MISSED"]


def detail(value: Any) -> str:
    """Any JSON value in one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {detail(below)}" for key, below in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(detail(below) for below in value) or "-"
    return str(value)


def flat(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a result has beside the common columns, one line each; durations with their unit."""
    rows = []
    for key, value in result.items():
        if key in _SHOWN_IN_CELLS:
            continue
        if key.endswith("_seconds"):
            shown = (
                ", ".join(f"{name} {duration(below)}" for name, below in value.items())
                if isinstance(value, Mapping)
                else duration(value)
            )
            rows.append((key.removesuffix("_seconds").replace("_", " "), shown))
        else:
            rows.append((key.replace("_", " "), detail(value)))
    return rows


def _size(value: Any) -> str:
    return "-" if value is None else format_size(value)
