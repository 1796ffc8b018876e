"""Placement policies of the core, one per module."""

from lmcache_kit.builtin.placement.records import RECORDS

__all__ = ["RECORDS"]
