"""Which module has the mutants of which kind, and which suite they are for."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["SUITES", "mutants_of", "sound_of"]

SUITES = {
    "storage": "StorageBackendTests",
    "compression": "CompressionMethodTests",
    "transport": "TransportTests",
    "engine": "EngineTests",
    "eviction": "EvictionPolicyTests",
    "placement": "PlacementTests",
    "trace": "TraceReaderTests",
}


def mutants_of(kind: str) -> tuple[Any, ...]:
    """The broken plugins of a kind."""
    return tuple(importlib.import_module(f"mutants.{kind}").MUTANTS)


def sound_of(kind: str) -> tuple[Any, ...]:
    """What they were made from."""
    return tuple(importlib.import_module(f"mutants.{kind}").SOUND)
