"""Storage backend ``valkey``: blobs on a Valkey or Redis server."""

from lmcache_kit_valkey.plugin import ValkeyOptions, lmcache_kit_storage_backends

__all__ = ["ValkeyOptions", "lmcache_kit_storage_backends"]
