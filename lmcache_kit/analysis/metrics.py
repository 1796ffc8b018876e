"""Values of a report by their path, and which ones a sweep shows when it is not told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmcache_kit.errors import ConfigError, nearest

__all__ = ["check_metric", "default_metrics", "metric"]

_TIMES = ("ttft_seconds", "tpot_seconds")
_PERCENTILES = ("p50", "p99")


def check_metric(path: str, results: Iterable[str]) -> None:
    """Raise ConfigError unless ``path`` is ``RESULT.PATH`` of one of the results."""
    known = list(results)
    name, dot, rest = path.partition(".")
    if not dot or not all(rest.split(".")):
        raise ConfigError(f"--metric {path!r} is not RESULT.PATH", hint="e.g. serve.ttft_seconds.p50")
    if name not in known:
        near = nearest(name, known)
        raise ConfigError(
            f"--metric {path}: no workload is called {name!r}",
            hint=f"did you mean {near!r}?" if near else f"workloads: {', '.join(known)}",
        )


def metric(report: Mapping[str, Any], path: str) -> Any:
    """The value at ``RESULT.PATH`` of a report's results; None where there is none."""
    name, _, rest = path.partition(".")
    here: Any = next((result for result in report["results"] if result["name"] == name), None)
    for key in rest.split("."):
        if isinstance(here, Mapping):
            here = here.get(key)
        elif isinstance(here, list) and key.isdecimal() and int(key) < len(here):
            here = here[int(key)]
        else:
            return None
    return here


def default_metrics(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """Hit rates, times to first token, times per output token, seconds and ratio, as far as a report has them."""
    return list(dict.fromkeys(path for report in reports for result in report["results"] for path in _sensible(result)))


def _sensible(result: Mapping[str, Any]) -> Iterator[str]:
    name = result["name"]
    for key, value in result.items():
        if key.endswith("hit_rate") and isinstance(value, int | float):
            yield f"{name}.{key}"
        elif key.endswith("hit_rates") and isinstance(value, Mapping):
            yield from (f"{name}.{key}.{below}" for below, rate in value.items() if isinstance(rate, int | float))
    for key in _TIMES:
        times = result.get(key)
        if isinstance(times, Mapping):
            yield from (f"{name}.{key}.{each}" for each in _PERCENTILES if isinstance(times.get(each), int | float))
    yield from (f"{name}.{key}" for key in ("seconds", "ratio") if isinstance(result.get(key), int | float))
