"""The report object of a run; docs/reference/report.md describes it key by key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.contracts.workload import WorkloadResult
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.report.host import host_facts, versions

__all__ = ["SCHEMA_VERSION", "build_report", "host_facts", "plugin_facts", "read_report", "result_entry", "versions"]

SCHEMA_VERSION = 1


def build_report(
    *,
    scenario: str,
    summary: str,
    clock: str,
    seed: int,
    status: str,
    error: str | None,
    started: float,
    seconds: float,
    boot_seconds: float | None,
    results: Iterable[WorkloadResult],
    expectations: Sequence[Mapping[str, Any]],
    plugins: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The report. ``status`` is ``passed``, ``missed`` (an expectation) or ``failed``; times in seconds.

    That of a virtual run has no ``started_unix``, ``versions`` and ``host``, so that it is the same on every machine;
    ``seconds`` and ``boot_seconds`` are the virtual clock's (see :mod:`lmcache_kit.report.machine`).
    """
    real = clock != "virtual"
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": scenario,
        "summary": summary,
        "clock": clock,
        "seed": seed,
        "status": status,
        "error": error,
        **({"started_unix": started} if real else {}),
        "seconds": seconds,
        "boot_seconds": boot_seconds,
        **({"versions": versions()} if real else {}),
        "plugins": list(plugins),
        **({"host": host_facts()} if real else {}),
        "results": [result_entry(result) for result in results],
        "expectations": list(expectations),
    }


def result_entry(result: WorkloadResult) -> dict[str, Any]:
    """One entry of ``results``: the name and kind, then the workload's values."""
    # Through JSON, so that a report in memory equals the one that is read from its file.
    return {"name": result.name, "kind": result.kind, **msgspec.json.decode(msgspec.json.encode(result.values))}


def plugin_facts(used: Iterable[tuple[str, str]], plugins: PluginRegistry) -> list[dict[str, str]]:
    """Each plugin that a run used, with the distribution that it came from and its version."""
    facts = []
    for kind, name in used:
        entry = next(entry for entry in plugins.all(kind) if entry.record.name == name)
        try:
            version = metadata.version(entry.distribution)
        except metadata.PackageNotFoundError:
            version = "unknown"
        facts.append({"kind": kind, "name": name, "distribution": entry.distribution, "version": version})
    return facts


def read_report(path: Path) -> dict[str, Any]:
    """A report from its file. Raises ConfigError when it is none, or of a later schema."""
    try:
        report = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="name a run's output directory") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not a report: {error}") from None
    missing = (
        {"schema_version", "scenario", "results"} - set(report) if isinstance(report, dict) else {"schema_version"}
    )
    if missing:
        raise ConfigError(f"{path} is not a report: it has no {', '.join(sorted(missing))}")
    if report["schema_version"] != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has report schema {report['schema_version']}, this lmcache-kit reads {SCHEMA_VERSION}",
            hint="use the lmcache-kit that wrote it",
        )
    return dict(report)
