"""Compression methods of the core, one per module."""

from lmcache_kit.builtin.compression.records import RECORDS

__all__ = ["RECORDS"]
