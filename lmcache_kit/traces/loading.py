"""A trace, whole and normalised: in order of time, with chained ids that mean the same everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmcache_kit.contracts.records import TracePlugin
from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.plugins import registry

__all__ = ["load_trace", "make_reader", "normalise"]


def make_reader(name: str, options: Mapping[str, Any] | None = None) -> TraceReader:
    """The trace reader plugin called ``name``. Raises UnknownNameError or ConfigError."""
    plugins = registry()
    record = plugins.get(TracePlugin, name)
    return record.factory(plugins.options(record, options))


def load_trace(
    path: str | Path,
    reader: str | TraceReader = "mooncake",
    *,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[TraceFormat, list[TraceRecord]]:
    """Every request of a file (or folder, where the format has folders), normalised.

    Args:
        path: the trace.
        reader: a reader, or the name of a reader plugin.
        limit: keep this many requests, the earliest ones; None for all.
        options: options of the reader plugin, where a name is given.

    Returns the format of the records (of one scope, chained) and the records as :func:`normalise` makes them. Their
    ``block_size`` is 0 when the format says nothing of prefixes. Raises InvalidRequestError naming file and line of a
    bad row, and UnknownNameError for an unknown reader.
    """
    path = Path(path)
    made = make_reader(reader, options) if isinstance(reader, str) else reader
    # Read first: some formats say what they mean by an id in their rows.
    records = list(made.read(path))
    form = made.format_read()
    return dataclasses.replace(form, id_scope="global", chained=True), normalise(records, form)[:limit]


def normalise(records: Iterable[TraceRecord], form: TraceFormat) -> list[TraceRecord]:
    """Records in order of arrival (equal ones as they stand), the first at 0 s, with ids of one scope.

    Ids of formats whose ids mean something within a session only are numbered anew, in order of appearance.
    """
    ordered = sorted(records, key=lambda record: record.arrival)
    if not ordered:
        return []
    first = ordered[0].arrival
    if first:
        ordered = [dataclasses.replace(record, arrival=record.arrival - first) for record in ordered]
    return _in_one_scope(ordered) if form.id_scope == "session" else ordered


def _in_one_scope(records: Iterable[TraceRecord]) -> list[TraceRecord]:
    numbers: dict[tuple[str | None, int], int] = {}
    made = []
    for record in records:
        ids = [numbers.setdefault((record.session, each), len(numbers)) for each in record.block_ids]
        tail = record.tail_id
        if tail is not None:
            tail = numbers.setdefault((record.session, tail), len(numbers))
        made.append(dataclasses.replace(record, block_ids=tuple(ids), tail_id=tail))
    return made
