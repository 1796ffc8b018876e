"""Uniform quantization of KV with one step per block and an offset per channel."""

from lmcache_kit_kernels.uniform.api import Uniform, dequantize, quantize

__all__ = ["Uniform", "dequantize", "quantize"]
