"""The command line."""

from lmcache_kit.cli.entry import main

__all__ = ["main"]
