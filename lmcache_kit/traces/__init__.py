"""Recorded requests: loaded whole, spread in time, and replayed through a cache without a fleet."""

from lmcache_kit.traces.loading import load_trace, make_reader

__all__ = ["load_trace", "make_reader"]
