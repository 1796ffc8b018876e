"""Whole blocks of KV to coded arrays and back: quantizer, statistics and entropy coder in one call."""

from lmcache_kit_kernels.blocks.api import decode, dequantize, encode, quantize
from lmcache_kit_kernels.blocks.records import Coded, Quantized, Settings

__all__ = ["Coded", "Quantized", "Settings", "decode", "dequantize", "encode", "quantize"]
