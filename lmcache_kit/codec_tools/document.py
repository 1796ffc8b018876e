"""The JSON document of a measurement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from lmcache_kit.codec_tools.measuring import CodecResult
from lmcache_kit.report.build import host_facts, versions

__all__ = ["SCHEMA_VERSION", "bench_document"]

SCHEMA_VERSION = 1

_LIBRARIES = ("ml-dtypes", "zstandard", "numba", "jaxlib")


def bench_document(
    results: Sequence[CodecResult],
    *,
    kv: dict[str, Any],
    seconds: float,
    gpu: str | None,
    distributions: Iterable[str],
) -> dict[str, Any]:
    """One object with what the figures depend on and the figures.

    Args:
        results: one per method.
        kv: where the KV came from.
        seconds: how long each speed was measured.
        gpu: the name of the device of methods that do not work on the CPU.
        distributions: packages of the methods, for their versions.
    """
    facts = host_facts()
    return {
        "schema_version": SCHEMA_VERSION,
        "host": {
            "cpu": facts["cpu"],
            "cores": facts["cpus"],
            "memory_bytes": facts["memory_bytes"],
            "gpu": gpu,
            "system": f"{facts['system']} {facts['release']} {facts['machine']}",
        },
        "versions": {**versions(), **_installed((*_LIBRARIES, *distributions))},
        "kv": kv,
        "seconds": seconds,
        "results": list(results),
    }


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
