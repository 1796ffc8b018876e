"""The report object of a run; docs/reference/report.md describes it key by key."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit import __version__
from lmcache_kit.contracts.workload import WorkloadResult
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry

__all__ = ["SCHEMA_VERSION", "build_report", "host_facts", "plugin_facts", "read_report", "result_entry", "versions"]

SCHEMA_VERSION = 1

_LIBRARIES = ("numpy", "pyzmq", "torch", "transformers", "jax")


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
    """The report. ``status`` is ``passed``, ``missed`` (an expectation) or ``failed``; times in seconds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": scenario,
        "summary": summary,
        "clock": clock,
        "seed": seed,
        "status": status,
        "error": error,
        "started_unix": started,
        "seconds": seconds,
        "boot_seconds": boot_seconds,
        "versions": versions(),
        "plugins": list(plugins),
        "host": host_facts(),
        "results": [result_entry(result) for result in results],
        "expectations": list(expectations),
    }


def result_entry(result: WorkloadResult) -> dict[str, Any]:
    """One entry of ``results``: the name and kind, then the workload's values."""
    # Through JSON, so that a report in memory equals the one that is read from its file.
    return {"name": result.name, "kind": result.kind, **msgspec.json.decode(msgspec.json.encode(result.values))}


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that matter, as far as they are installed."""
    found = {"lmcache-kit": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def host_facts() -> dict[str, Any]:
    """What the numbers depend on; nothing that names the machine or its user."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = None
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": usable,
        "memory_bytes": memory,
    }


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


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
