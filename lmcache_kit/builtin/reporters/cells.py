"""What the table and the page show of each result, and how numbers are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmcache_kit.units import format_count, format_duration, format_size

__all__ = [
    "COLUMNS",
    "FACTS",
    "GROUPS",
    "NUMERIC",
    "cells",
    "detail",
    "duration",
    "expectation_cells",
    "facts",
    "flat",
    "notes",
    "used",
]

COLUMNS = (
    "result",
    "tokens",
    "KV before",
    "KV after",
    "ratio",
    "time",
    "latency p50",
    "p90",
    "p99",
    "TTFT cold",
    "TTFT cached",
    "hit rate",
    "TTFT p50",
    "TTFT p99",
    "TPOT p50",
)
GROUPS = (COLUMNS[1:5], COLUMNS[5:9], COLUMNS[9:11], COLUMNS[11:])
"""Columns that belong side by side: sizes, times, times to first token, and what users of a fleet get."""
NUMERIC = frozenset(COLUMNS[1:])
_NOTES = (
    {
        ("KV before", "KV after"): (
            "KV before, after: completions: the KV they stored or loaded, as the engine has it and as the tiers hold "
            "it; moves: at the source and at the target; others: what the tiers concerned held."
        ),
        ("ratio",): "ratio: before to after, above 1 it got smaller.",
    },
    {
        ("time",): "time: from the first request to the last answer.",
        ("latency p50",): "latency: of one request.",
        ("TTFT cold", "TTFT cached"): "TTFT cold, cached: median time to first token, without and with cached tokens.",
    },
    {
        ("TTFT p50", "TTFT p99"): "TTFT p50, p99: time to first token over all requests, from their arrival.",
        ("TPOT p50",): "TPOT: time per output token after the first.",
    },
)
FACTS = ("result", "counts", "worth knowing")
_SHOWN_IN_CELLS = frozenset({"name", "kind", "counts", "tokens", "bytes_before", "bytes_after", "ratio", "seconds"})
# Of whatever a workload reports beside the common values, these fit on a line.
_WORTH = ("hit_rate", "verified", "all_found", "method")


_MET = {True: "met", False: "MISSED", None: "unknown"}


def notes(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the columns mean that these results have."""
    shown = {COLUMNS[index] for index in used(COLUMNS, [cells(result) for result in results])}
    lines = (" ".join(note for columns, note in group.items() if shown & {*columns}) for group in _NOTES)
    return tuple(line for line in lines if line)


def used(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Positions of the columns that say something in any row; the others only take room."""
    return [index for index in range(len(columns)) if any(row[index] not in ("", "-") for row in rows)]


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
        _duration(result.get("seconds")),
        *(_duration(latency.get(percentile)) for percentile in ("p50", "p90", "p99")),
        *(_duration((result.get(f"ttft_{which}_seconds") or {}).get("p50")) for which in ("cold", "cached")),
        *_served(result),
    ]


def _served(result: Mapping[str, Any]) -> list[str]:
    """Hit rate, times to first token and per output token, of results that have the last."""
    if not _is_served(result):
        return ["-"] * 4
    rate = result.get("hit_rate")
    ttft, tpot = result.get("ttft_seconds") or {}, result.get("tpot_seconds") or {}
    return [
        "-" if rate is None else f"{rate:.4f}",
        _duration(ttft.get("p50")),
        _duration(ttft.get("p99")),
        _duration(tpot.get("p50")),
    ]


def _is_served(result: Mapping[str, Any]) -> bool:
    return "tpot_seconds" in result


def facts(result: Mapping[str, Any]) -> list[str]:
    """One line of the table beside it: how many of what, and what is special to the workload."""
    counts: Mapping[str, int] = result.get("counts") or {}
    shown = {"hit_rate"} if _is_served(result) else set()
    rates = [key for key in result if key.endswith("_hit_rate")]
    worth = [_worth(key, result[key]) for key in (*_WORTH, *rates) if result.get(key) is not None and key not in shown]
    if result.get("ttft_ratio") is not None:
        worth.append(f"median TTFT {detail(result['ttft_ratio'])} times that of {result.get('compared_to')}")
    if result.get("text_equal_count") is not None:
        worth.append(f"same text {result['text_equal_count']} of {counts.get('requests')}")
    return [
        str(result["name"]),
        ", ".join(format_count(count, what.replace("_", " ")) for what, count in counts.items()),
        ", ".join(worth),
    ]


def expectation_cells(outcome: Mapping[str, Any]) -> list[str]:
    """One line of the expectations table."""
    unit = " s" if any(part.endswith("seconds") for part in str(outcome["path"]).split(".")) else ""
    got = outcome.get("problem") or detail(outcome.get("got")) + unit
    wanted = detail(outcome["wanted"])
    if outcome.get("against") is not None:
        wanted += f" ({detail(outcome['against'])}{unit})"
    return [str(outcome["path"]), wanted, got, _MET[outcome["met"]]]


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


def flat(result: Mapping[str, Any], elsewhere: Collection[str] = ()) -> list[tuple[str, str]]:
    """What a result has beside the common columns, one line each; durations with their unit.

    ``elsewhere`` are keys that are shown in another way.
    """
    rows = []
    for key, value in result.items():
        if key in _SHOWN_IN_CELLS or key in elsewhere:
            continue
        if key.endswith("_seconds"):
            shown = (
                ", ".join(f"{name} {_duration(below)}" for name, below in value.items())
                if isinstance(value, Mapping)
                else _duration(value)
            )
            rows.append((key.removesuffix("_seconds").replace("_", " "), shown))
        else:
            rows.append((key.replace("_", " "), detail(value)))
    return rows


def _size(value: Any) -> str:
    return "-" if value is None else format_size(value)


def duration(seconds: float) -> str:
    """A duration as reports show it: virtual runs last for hours, and 1.23e+04 s reads badly."""
    return f"{seconds:,.0f} s" if abs(seconds) >= 999.5 else format_duration(seconds)


def _duration(value: float | None) -> str:
    return "-" if value is None else duration(value)


def _worth(key: str, value: Any) -> str:
    name = key.replace("_", " ")
    return (name if value else f"not {name}") if isinstance(value, bool) else f"{name} {detail(value)}"
