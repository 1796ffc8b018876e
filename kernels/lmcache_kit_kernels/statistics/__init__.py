"""What the symbols of a channel look like: its centre, whether deltas pay, and which table codes it."""

from lmcache_kit_kernels.statistics.api import MAX_TOKENS, Channels, fit, restore

__all__ = ["MAX_TOKENS", "Channels", "fit", "restore"]
