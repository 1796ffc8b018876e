"""Eviction policies of the core, one per module."""

from lmcache_kit.builtin.eviction.records import RECORDS

__all__ = ["RECORDS"]
