"""Runs of words out of their rooms and one after another, with their checks summed up on the way."""

from lmcache_kit_kernels.compaction.api import compact

__all__ = ["compact"]
