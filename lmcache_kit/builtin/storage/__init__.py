"""Storage backends of the core: memory and local disk."""

from lmcache_kit.builtin.storage.records import RECORDS

__all__ = ["RECORDS"]
