"""Recorded requests: loaded whole, spread in time, and replayed through a cache without a fleet."""

from lmcache_kit.traces.loading import load_trace, make_reader
from lmcache_kit.traces.reuse import replay
from lmcache_kit.traces.spreading import spread_bursts

__all__ = ["load_trace", "make_reader", "replay", "spread_bursts"]
