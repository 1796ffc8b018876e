"""The compression method ``cachegen``."""

from lmcache_kit_cachegen.plugin import lmcache_kit_compression_methods

__all__ = ["lmcache_kit_compression_methods"]
