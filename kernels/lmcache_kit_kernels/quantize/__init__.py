"""Uniform quantization of KV with one maximum per token, as LMCache's cachegen does it."""

from lmcache_kit_kernels.quantize.api import dequantize, quantize, representable

__all__ = ["dequantize", "quantize", "representable"]
