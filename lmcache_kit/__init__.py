"""A testbed and simulator for KV cache management in LLM serving."""

from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.hookspecs import hookimpl

__all__ = ["LMCacheKitError", "__version__", "hookimpl"]

__version__ = "0.1.0"
