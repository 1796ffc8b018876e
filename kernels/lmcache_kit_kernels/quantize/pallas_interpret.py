"""The Pallas kernels under Pallas's interpreter, which runs on any device."""

from __future__ import annotations

import functools

from lmcache_kit_kernels.quantize import pallas

__all__ = ["dequantize", "quantize"]

quantize = functools.partial(pallas.quantize, interpret=True)
dequantize = functools.partial(pallas.dequantize, interpret=True)
