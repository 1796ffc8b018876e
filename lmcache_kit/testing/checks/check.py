"""One plugin, all its checks."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from lmcache_kit.contracts.records import PLUGIN_KINDS, Options, Plugin
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.testing.checks.result import CheckResult, require, run_check

__all__ = ["check_plugin"]

_MODULES = {
    "storage": "storage",
    "compression": "compression",
    "transport": "transport",
    "engine": "engine",
    "eviction": "eviction",
    "placement": "placement",
}
_NAME = re.compile(r"[a-z0-9_]+")


def check_plugin(record: Plugin, *, options: Mapping[str, Any] | None = None) -> list[CheckResult]:
    """Make the plugin and try what its kind promises.

    Args:
        record: the plugin.
        options: its options as plain values; the defaults where nothing is given.

    A plugin that cannot be made without options, or whose server cannot be reached, is skipped with the reason.
    Nothing that the plugin does raises from here.
    """
    results = [run_check("record", lambda: _record(record))]
    if results[0].outcome == "failed":
        return results
    required = [
        field.encode_name
        for field in msgspec.structs.fields(record.options)
        if field.required and field.encode_name not in (options or {})
    ]
    if required:
        return [*results, CheckResult("options", "skipped", f"needs options without a default: {', '.join(required)}")]
    try:
        made = PluginRegistry.options(record, options)
    except ConfigError as error:
        return [*results, CheckResult("options", "failed", error.detail)]
    module = importlib.import_module(f"{__package__}.{_MODULES.get(record.kind, 'plain')}")
    try:
        results += module.run(record, made)
    except Exception as error:  # third-party code, outside of any one check
        results.append(CheckResult("made and closed", "failed", f"{type(error).__name__}: {error}"))
    return results


def _record(record: Plugin) -> str:
    require(_NAME.fullmatch(record.name) is not None, f"the name {record.name!r} has other characters than a-z 0-9 _")
    summary = record.summary
    require(bool(summary.strip()) and len(summary.splitlines()) == 1, "the summary is not one line")
    require(issubclass(record.options, Options), "its options are not a subclass of Options")
    require(
        isinstance(record, PLUGIN_KINDS[record.kind]), f"{type(record).__name__} is not the record of {record.kind}"
    )
    msgspec.json.schema(record.options)
    return f"options: {', '.join(field.encode_name for field in msgspec.structs.fields(record.options)) or 'none'}"
