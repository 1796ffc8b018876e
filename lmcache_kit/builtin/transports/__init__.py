"""Transports that come with the core."""

from lmcache_kit.builtin.transports.records import RECORDS

__all__ = ["RECORDS"]
