"""What the benchmarks share: arguments, repeated timing, summaries, the table and the result file.

A result file is one JSON object: ``schema_version``, ``benchmark``, ``quick``, ``hardware``, ``versions``,
``load_average`` (before and after), ``parameters`` and ``results``. Each result has a ``name``, what was measured (its
other plain fields) and ``metrics``: for each metric a :func:`summary`, raw samples included. Names end in the unit.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from facts import hardware, load_average, versions

__all__ = ["LEAST_CALLS", "SCHEMA_VERSION", "Report", "argument_parser", "measure", "percentile", "summary", "table"]

SCHEMA_VERSION = 1
MOST_SAMPLES = 100
LEAST_CALLS = 5


def argument_parser(doc: str | None, *, seconds: float | None = None, each: str = "") -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has.

    Args:
        doc: the script's docstring.
        seconds: default of ``--seconds``, the time for ``each`` of something; without it there is no such option.
        each: what that is.
    """
    text = (doc or "").strip()
    parser = argparse.ArgumentParser(
        description=text.partition("\n")[0], epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results to this file (JSON)")
    if seconds is not None:
        parser.add_argument(
            "--seconds", type=float, default=seconds, help=f"time for each {each}; default: {seconds:g}"
        )
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works; no figures to keep")
    return parser


def percentile(samples: Iterable[float], percent: float) -> float:
    """Nearest rank: a value that was measured. Below 100 samples the 99th percentile is the largest."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median (p50), p99, extremes and the samples in their order, thinned evenly where there are many."""
    step = math.ceil(len(samples) / MOST_SAMPLES)
    return {
        "count": len(samples),
        "median": statistics.median(samples),
        "p50": percentile(samples, 50),
        "p99": percentile(samples, 99),
        "min": min(samples),
        "max": max(samples),
        "samples": [float(f"{sample:.6g}") for sample in samples[::step]],
    }


def measure(work: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, after one that warms up: for about ``seconds``, and never less than a handful of calls."""
    work()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < LEAST_CALLS or time.perf_counter() - begin < seconds:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return taken


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Right-aligned columns; numbers with about four digits."""
    cells = [[_cell(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)


class Report:
    """Collects results and writes the file. Made before the first measurement, since it notes the load average.

    Args:
        benchmark: its name.
        arguments: of :func:`argument_parser`.
        parameters: what the figures depend on and may be chosen: sizes, rounds, seconds.
        distributions: whose versions matter.
    """

    def __init__(
        self,
        benchmark: str,
        arguments: argparse.Namespace,
        parameters: Mapping[str, Any],
        distributions: Iterable[str] = (),
    ) -> None:
        self._output: Path | None = arguments.output
        self._head = {
            "schema_version": SCHEMA_VERSION,
            "benchmark": benchmark,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": arguments.quick,
            "hardware": hardware(),
            "versions": versions(distributions),
            "parameters": dict(parameters),
        }
        self._load = load_average()
        self.results: list[dict[str, Any]] = []

    def add(self, name: str, metrics: Mapping[str, Sequence[float]], **fields: Any) -> dict[str, Any]:
        """One result from the raw samples of each metric; returned with their summaries."""
        summaries = {metric: summary(samples) for metric, samples in metrics.items()}
        self.results.append({"name": name, **fields, "metrics": summaries})
        return self.results[-1]

    def write(self, **more: Any) -> None:
        """Write the file when one was asked for; ``more`` are further fields beside the results."""
        if self._output is None:
            return
        load = {"load_average": {"before": self._load, "after": load_average()}}
        document = {**self._head, **load, **more, "results": self.results}
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._output.write_text(json.dumps(document, indent=1) + "\n")
