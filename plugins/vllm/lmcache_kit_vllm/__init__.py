"""lmcache-kit for vLLM: the connector ``LMCacheKitConnector``, and the engine ``vllm`` of scenarios.

vLLM imports the connector from here (``"kv_connector_module_path": "lmcache_kit_vllm"``).
"""

from __future__ import annotations

from typing import Any

from lmcache_kit_vllm.plugin import lmcache_kit_engines

__all__ = ["LMCacheKitConnector", "lmcache_kit_engines"]


def __getattr__(name: str) -> Any:
    # Only vLLM asks for it; elsewhere this package is imported without vLLM and torch.
    if name == "LMCacheKitConnector":
        from lmcache_kit_vllm.connector import LMCacheKitConnector

        return LMCacheKitConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
