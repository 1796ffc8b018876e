"""The plugin under test and the built-ins of its kind, measured one after another."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from lmcache_kit.contracts.records import Options, Plugin
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.plugins import PluginRegistry, registry

__all__ = ["KINDS", "Comparison", "Row", "compare"]

KINDS = {
    "storage": True,
    "compression": True,
    "transport": True,
    "engine": True,
    "eviction": True,
    "placement": True,
    "trace": False,
}
"""Kinds of which there is a module ``lmcache_kit.testing.comparison.KIND`` with a function :class:`Measure`, and
whether it can measure the built-ins too: readers of other formats cannot read an author's file."""

_BUILTIN = "lmcache-kit"


class Measure(Protocol):
    """``measure`` of a kind's module."""

    def __call__(
        self, record: Any, options: Options, *, seconds: float, sample: Path | None
    ) -> Mapping[str, float | int | str | None]:
        """Figures of one plugin by their name with the unit, the same names in the same order for all of its kind.

        Args:
            record: the plugin's record.
            options: what its factory takes.
            seconds: about how long one figure may take.
            sample: a file of the author's, for kinds that need one.

        May raise whatever the plugin raises.
        """
        ...


class Row(msgspec.Struct, frozen=True):
    """One plugin: its figures, or why there are none."""

    plugin: str
    builtin: bool
    figures: dict[str, float | int | str | None]
    problem: str | None = None


class Comparison(msgspec.Struct, frozen=True):
    """The plugin under test first, then the built-ins with their default options."""

    kind: str
    rows: list[Row]

    def columns(self) -> list[str]:
        """Names of all figures, in order."""
        return list(dict.fromkeys(name for row in self.rows for name in row.figures))


def compare(record: Plugin, options: Options, *, seconds: float = 0.2, sample: Path | None = None) -> Comparison | None:
    """Measure ``record`` and the built-ins of its kind; None for kinds of which there is nothing to measure.

    Args:
        record: the plugin.
        options: its options.
        seconds: about how long one figure may take.
        sample: a file of the author's, for kinds that need one (a trace).
    """
    if record.kind not in KINDS:
        return None
    measure: Measure = importlib.import_module(f"{__package__}.{record.kind}").measure
    rows = [_row(measure, record, options, seconds, sample, builtin=_is_builtin(record))]
    for entry in registry().all(record.kind) if KINDS[record.kind] else ():
        if entry.distribution == _BUILTIN and entry.record.name != record.name:
            defaults = PluginRegistry.options(entry.record)
            rows.append(_row(measure, entry.record, defaults, seconds, sample, builtin=True))
    return Comparison(record.kind, rows)


def _is_builtin(record: Plugin) -> bool:
    return any(entry.record is record and entry.distribution == _BUILTIN for entry in registry().all(record.kind))


def _row(
    measure: Measure, record: Plugin, options: Options, seconds: float, sample: Path | None, *, builtin: bool
) -> Row:
    try:
        figures = dict(measure(record, options, seconds=seconds, sample=sample))
    except LMCacheKitError as error:
        return Row(record.name, builtin, {}, error.detail)
    except Exception as error:  # third-party code
        return Row(record.name, builtin, {}, f"{type(error).__name__}: {error}")
    return Row(record.name, builtin, figures)
