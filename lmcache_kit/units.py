"""Sizes, bandwidths and durations as people write them in scenarios."""

from __future__ import annotations

import re

from lmcache_kit.errors import ConfigError

__all__ = ["format_count", "format_duration", "format_size", "parse_bandwidth", "parse_duration", "parse_size"]

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z/]*)\s*")
_SIZE = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_BANDWIDTH = {
    "bps": 1 / 8,
    "kbps": 1e3 / 8,
    "Mbps": 1e6 / 8,
    "Gbps": 1e9 / 8,
    **{f"{unit}/s": float(factor) for unit, factor in _SIZE.items() if unit},
}
_DURATION = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}


def _parse(text: str | int | float, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    if isinstance(text, bool):
        raise ConfigError(f"{text!r} is not a {what}", hint=f"write it like {example}")
    match = _NUMBER.fullmatch(str(text))
    if match is None or match[2] not in units:
        listed = ", ".join(unit for unit in units if unit)
        raise ConfigError(f"{text!r} is not a {what}", hint=f"write it like {example}; units: {listed}")
    return float(match[1]) * units[match[2]]


def parse_size(text: str | int | float) -> int:
    """Bytes of ``"64MiB"``, ``"5GB"`` or a plain number. Raises ConfigError."""
    return round(_parse(text, _SIZE, "size", "64MiB"))


def parse_bandwidth(text: str) -> float:
    """Bytes per second of ``"1Gbps"`` (bits) or ``"100MB/s"`` (bytes). Raises ConfigError."""
    value = _parse(text, _BANDWIDTH, "bandwidth", "1Gbps or 100MB/s")
    if value <= 0:
        raise ConfigError("a bandwidth must be above 0", hint="leave it out for no limit")
    return value


def parse_duration(text: str | int | float) -> float:
    """Seconds of ``"5ms"``, ``"2s"`` or a plain number. Raises ConfigError."""
    return _parse(text, _DURATION, "duration", "5ms")


def format_size(nbytes: float) -> str:
    """``nbytes`` with a binary unit and three digits, for tables."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def format_duration(seconds: float) -> str:
    """``seconds`` with three digits, in the unit that reads best."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns" if seconds else "0 s"


def format_count(count: int, things: str) -> str:
    """``3 jobs``, ``1 job``, ``1 miss``; ``things`` is the plural."""
    if count == 1:
        things = things.removesuffix("es") if things.endswith(("sses", "xes")) else things.removesuffix("s")
    return f"{count:,} {things}"
