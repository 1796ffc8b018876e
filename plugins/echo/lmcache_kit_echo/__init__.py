"""Compression method ``echo``: what a token's KV repeats of the token before it costs nothing."""

from lmcache_kit_echo.plugin import EchoOptions, lmcache_kit_compression_methods

__all__ = ["EchoOptions", "lmcache_kit_compression_methods"]
