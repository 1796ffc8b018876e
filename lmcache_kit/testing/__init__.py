"""What plugin authors test with: conformance suites, and hypothesis strategies for the project's data.

Needs ``pip install 'lmcache-kit[testing]'``. A suite is loaded when it is first asked for, so that the pytest plugin,
which every pytest in the environment loads, costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmcache_kit.testing import strategies
    from lmcache_kit.testing.suites.compression import CompressionMethodTests
    from lmcache_kit.testing.suites.engine import EngineTests
    from lmcache_kit.testing.suites.eviction import EvictionPolicyTests
    from lmcache_kit.testing.suites.placement import PlacementTests
    from lmcache_kit.testing.suites.storage import StorageBackendTests
    from lmcache_kit.testing.suites.trace import TraceReaderTests
    from lmcache_kit.testing.suites.transport import TransportTests

__all__ = [
    "CompressionMethodTests",
    "EngineTests",
    "EvictionPolicyTests",
    "PlacementTests",
    "StorageBackendTests",
    "TraceReaderTests",
    "TransportTests",
    "strategies",
]

_SUITES = {
    "CompressionMethodTests": "compression",
    "EngineTests": "engine",
    "EvictionPolicyTests": "eviction",
    "PlacementTests": "placement",
    "StorageBackendTests": "storage",
    "TraceReaderTests": "trace",
    "TransportTests": "transport",
}


def __getattr__(name: str) -> Any:
    if name == "strategies":
        return importlib.import_module(f"{__name__}.strategies")
    if name in _SUITES:
        return getattr(importlib.import_module(f"{__name__}.suites.{_SUITES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
