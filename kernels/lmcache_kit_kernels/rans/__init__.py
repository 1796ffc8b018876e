"""Range asymmetric numeral systems over many lanes in step."""

from lmcache_kit_kernels.rans.api import GROUP_LANES, LOWER_BOUND, Streams, decode, encode

__all__ = ["GROUP_LANES", "LOWER_BOUND", "Streams", "decode", "encode"]
