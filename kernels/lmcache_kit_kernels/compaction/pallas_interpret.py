"""The Pallas kernel under Pallas's interpreter, which runs on any device."""

from __future__ import annotations

import functools

from lmcache_kit_kernels.compaction import pallas

__all__ = ["compact"]

compact = functools.partial(pallas.compact, interpret=True)
