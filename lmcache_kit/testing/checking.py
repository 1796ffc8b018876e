"""One plugin, its whole suite: what ``lmcache-kit plugins check`` does, without its command line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lmcache_kit.contracts.records import Plugin
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.testing.comparison import Comparison, compare
from lmcache_kit.testing.results import CheckResult
from lmcache_kit.testing.running import NOT_TRIED, run_suite

if TYPE_CHECKING:
    from lmcache_kit.testing.suites.base import PluginTests

__all__ = ["SUITES", "CheckReport", "check_plugin", "suite_of"]

SUITES = {
    "storage": "storage.StorageBackendTests",
    "compression": "compression.CompressionMethodTests",
    "transport": "transport.TransportTests",
    "engine": "engine.EngineTests",
    "eviction": "eviction.EvictionPolicyTests",
    "placement": "placement.PlacementTests",
    "trace": "trace.TraceReaderTests",
    "workload": "plain.WorkloadTests",
    "launcher": "plain.LauncherTests",
    "reporter": "plain.ReporterTests",
}
"""Module and class of each kind's suite, below ``lmcache_kit.testing.suites``."""

QUICK_EXAMPLES, USUAL_EXAMPLES = 20, 100
# Reasons for which nothing of a plugin could be tried; once is enough.
_UNUSABLE = ("it cannot be used here", "needs options without a default", NOT_TRIED)


class CheckReport(msgspec.Struct, frozen=True):
    """What a plugin declares, how its suite ended, and how it compares.

    Args:
        kind, name, distribution: whose report it is.
        capabilities: what its record declares.
        abilities: optional protocols of the contract that it has.
        results: one per test of the suite.
        comparison: figures beside those of the built-ins; None where there are none, or none were asked for.
    """

    kind: str
    name: str
    capabilities: list[str]
    abilities: list[str]
    results: list[CheckResult]
    comparison: Comparison | None

    @property
    def failed(self) -> bool:
        return any(result.outcome == "failed" for result in self.results)


def suite_of(kind: str) -> type[PluginTests]:
    """The suite of a kind of plugin."""
    module, name = SUITES[kind].split(".")
    suite: type[PluginTests] = getattr(importlib.import_module(f"lmcache_kit.testing.suites.{module}"), name)
    return suite


def check_plugin(
    record: Plugin,
    *,
    options: Mapping[str, Any] | None = None,
    quick: bool = False,
    sample: Path | None = None,
    seconds: float = 0.2,
) -> CheckReport:
    """Run the suite of the plugin's kind in this process.

    Args:
        record: the plugin.
        options: its options as plain values; the defaults where nothing is given.
        quick: try fewer examples, do not make failing ones smaller, and compare with nothing.
        sample: a well-formed file, for a trace reader.
        seconds: about how long one figure of the comparison may take.

    A plugin that cannot be made without options, or whose server cannot be reached, is skipped with the reason.
    Nothing that the plugin does raises from here.
    """
    values = dict(options or {})
    report = CheckReport(record.kind, record.name, sorted(record.capabilities), [], [], None)
    try:
        missing = [
            field.encode_name
            for field in msgspec.structs.fields(record.options)
            if field.required and field.encode_name not in values
        ]
        made = None if missing else PluginRegistry.options(record, values)
    except (ConfigError, TypeError) as error:
        problem = error.detail if isinstance(error, ConfigError) else f"its options cannot be read: {error}"
        return msgspec.structs.replace(report, results=[CheckResult("options", "failed", problem)])
    fixtures: dict[str, Any] = {"plugin": record, "options": values}
    if sample is not None:
        fixtures["sample"] = sample
    number = QUICK_EXAMPLES if quick else USUAL_EXAMPLES
    run = run_suite(SUITES[record.kind], fixtures=fixtures, examples=number, shrink=not quick)
    report = msgspec.structs.replace(report, abilities=run.abilities, results=_once(run.results))
    usable = made is not None and not any(_is_unusable(result) for result in run.results)
    if quick or not usable or report.failed:
        return report
    assert made is not None
    return msgspec.structs.replace(report, comparison=compare(record, made, seconds=seconds, sample=sample))


def _is_unusable(result: CheckResult) -> bool:
    return result.outcome == "skipped" and result.detail.startswith(_UNUSABLE)


def _once(results: list[CheckResult]) -> list[CheckResult]:
    """Without the tests that were skipped for a reason that an earlier such result says."""
    kept: list[CheckResult] = []
    for result in results:
        if not (_is_unusable(result) and any(each.detail == result.detail for each in kept if _is_unusable(each))):
            kept.append(result)
    return kept
