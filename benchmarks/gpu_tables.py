"""What the comparison on the GPU prints, and how ours compares with LMCache's in each result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import table

__all__ = ["add_comparisons", "print_results"]

_SPEEDS = {
    "encode": "enc", "decode": "dec", "encode_same": "enc same", "decode_same": "dec same",
    "encode_single": "enc single", "decode_single": "dec single", "to_bytes": "to bytes", "from_bytes": "from bytes",
}  # fmt: skip
_COMPARED = ("encode", "decode", "to_bytes", "from_bytes")

Result = dict[str, Any]


def add_comparisons(results: Sequence[Result]) -> None:
    """Give each of our results ``against``: by LMCache's result of the same shape, how many times faster each metric
    is, and our bytes over theirs."""
    for ours in results:
        if not ours["name"].startswith("ours"):
            continue
        ours["against"] = {
            theirs["name"]: _comparison(ours, theirs)
            for theirs in results
            if theirs["shape"] == ours["shape"] and theirs["name"].startswith("lmcache")
        }


def _comparison(ours: Result, theirs: Result) -> dict[str, float]:
    times = {
        f"{metric.removesuffix('_seconds')}_times_faster": theirs["metrics"][metric]["median"] / mine["median"]
        for metric, mine in ours["metrics"].items()
        if metric in theirs["metrics"]
    }
    return {**times, "bytes_over_theirs": theirs["ratio"] / ours["ratio"]}


def print_results(results: Sequence[Result], checks: Sequence[Result], absent: Sequence[dict[str, str]]) -> None:
    """Checks, what is absent, and the two tables last."""
    for found in checks:
        facts = ", ".join(f"{key} {value}" for key, value in found.items() if key != "shape")
        print(f"check {found['shape']}: {facts}")
    for result in results:
        if "values_unlike_lmcache" in result:
            print(f"check {result['shape']}: {result['name']}, values unlike lmcache {result['values_unlike_lmcache']}")
    grouped: dict[str, dict[str, list[str]]] = {}
    for one in absent:
        names = grouped.setdefault(one["reason"], {})
        names.setdefault(f"{one['name']} ({one['what']})", []).append(one["shape"])
    for reason, names in grouped.items():
        shapes = sorted({shape for of_name in names.values() for shape in of_name})
        print(f"absent: {'; '.join(names)}: {reason} [{' '.join(shapes)}]")
    print("\nGB/s of the bfloat16 tensor; same: one tensor again and again; single: one call at a time")
    facts_of = ("shape", "name", "ratio", "nmse")
    rows = [[*(result[key] for key in facts_of), *(_speed(result, metric) for metric in _SPEEDS)] for result in results]
    print(table(["shape", "method", "ratio", "nmse", *_SPEEDS.values()], rows))
    compared = [
        [result["shape"], result["name"], other, *(figures.get(f"{metric}_times_faster") for metric in _COMPARED),
         figures["bytes_over_theirs"]]
        for result in results
        for other, figures in result.get("against", {}).items()
    ]  # fmt: skip
    if compared:
        print("\ntimes faster than LMCache, and our bytes over theirs")
        print(table(["shape", "method", "than", *(_SPEEDS[metric] for metric in _COMPARED), "bytes"], compared))


def _speed(result: Result, metric: str) -> float | None:
    found = result["metrics"].get(f"{metric}_seconds")
    return None if found is None else result["raw_bytes"] / 1e9 / found["median"]
