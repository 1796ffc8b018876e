"""Tables inside a report: what it says of each instance, tier or link, as lists of objects or objects by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmcache_kit.builtin.reporters.cells import detail, duration
from lmcache_kit.units import format_size

__all__ = ["Part", "parts_of"]

_ELSEWHERE = frozenset({"results", "expectations", "plugins", "windows"})
_SUMMARY = frozenset({"mean", "min", "max", "p50", "p90", "p99"})


@dataclass(frozen=True, slots=True)
class Part:
    """One table: its key in the report, headings, and cells as they are shown."""

    key: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[str]


def parts_of(values: Mapping[str, Any]) -> Iterator[Part]:
    """The tables of a report or of one of its results, in its order."""
    for key, value in values.items():
        if key in _ELSEWHERE:
            continue
        rows = _rows(key, value)
        if rows:
            yield _part(key, rows)


def _rows(key: str, value: Any) -> list[Mapping[str, Any]]:
    """One mapping of column to value per row; none when the value is no table."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return value
    if isinstance(value, Mapping) and value and all(isinstance(each, Mapping) for each in value.values()):
        return [{"": name, **below} for name, below in value.items()]
    return []


def _part(key: str, rows: Sequence[Mapping[str, Any]]) -> Part:
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    # Of {"queue_seconds": {"a": {"p50": ...}}} the unit stands outside.
    unit = "_seconds" if key.endswith("_seconds") else ""
    columns = {name: name.removesuffix("_seconds").replace("_", " ").replace(".", " ") for name in names}
    numeric = [name for name in names if all(_is_number(row.get(name)) or row.get(name) is None for row in flat)]
    return Part(
        key=key,
        columns=tuple(columns.values()),
        rows=tuple(tuple(_cell(name + unit, row.get(name)) for name in names) for row in flat),
        numeric=frozenset(columns[name] for name in numeric),
    )


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose percentiles stand in columns of their own."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and value and set(value) <= _SUMMARY:
            bare = name.removesuffix("_seconds")
            unit = name[len(bare) :]
            flat |= {f"{bare}.{each}{unit}": value[each] for each in ("p50", "p99") if each in value}
        else:
            flat[name] = value
    return flat


def _cell(name: str, value: Any) -> str:
    if _is_number(value):
        if name.endswith("seconds"):
            return duration(value)
        if name.startswith("bytes") or name.endswith("bytes"):
            return format_size(value)
    return detail(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
