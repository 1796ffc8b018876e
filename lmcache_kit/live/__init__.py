"""Runs on the wall clock: real processes, real sockets, real bytes."""

from lmcache_kit.live.folder import OutputFolder
from lmcache_kit.live.runner import Run, write_reports

__all__ = ["OutputFolder", "Run", "write_reports"]
