"""The Pallas kernels under Pallas's interpreter, which runs on any device."""

from __future__ import annotations

import functools

from lmcache_kit_kernels.blocks import pallas
from lmcache_kit_kernels.blocks.xla import dequantize, quantize

__all__ = ["decode", "dequantize", "encode", "quantize"]

encode = functools.partial(pallas.encode, interpret=True)
decode = functools.partial(pallas.decode, interpret=True)
