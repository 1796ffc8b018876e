"""Storage backends ``fsspec``, ``fsspec_private`` and ``fsspec_memory``: blobs on any fsspec file system."""

from lmcache_kit_fsspec.plugin import FsspecOptions, MemoryOptions, lmcache_kit_storage_backends

__all__ = ["FsspecOptions", "MemoryOptions", "lmcache_kit_storage_backends"]
