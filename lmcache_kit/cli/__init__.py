"""The command line."""

from lmcache_kit.cli.app import main

__all__ = ["main"]
