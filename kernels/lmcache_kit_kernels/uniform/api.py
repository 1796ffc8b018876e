"""Quantize and dequantize with the uniform quantizer, on any backend.

One block ``[T, C]``, all arithmetic in float32 with each operation rounded on its own. ``pat(v)`` is the upper half of
the bits of v, a number that grows with ``log2(v)`` in units of 1/128.

1. Channel sums, token after token: ``S1 += x``, ``S2 += x * x``, where float32 input counts as its bfloat16 and
   magnitudes below 2**-60 count as zero. (Products of 16-bit floats are exact.)
2. ``mean = S1 * (1/T)``, ``Q = mean * mean``, ``V = max(0, S2 * (1/T) - Q)``. Any of Q, S2 * (1/T) and V below 2**-126
   is zero. The log variance of the block is ``M = sum over c of max(pat(V), floor) // C`` with ``floor = max(max over c
   of pat(V) - 2048, max over c of pat(Q) - 2304, 0)``; a caller may give M instead. The inverse of the step is the
   bfloat16 of pattern ``ratio + 8128 - (M >> 1)``: ``ratio`` over the geometric mean of the deviations. A block of
   zeros has inverse 1.
3. ``offset[c] = rint(mean * inverse)``, all rint half to even.
4. ``y = x * inverse - offset`` (two roundings); the token's exponent e is the least with
   ``rint(max |y| * 2**-e) <= 63``.
5. ``s = rint(y * 2**-e)``; the symbol is ``s mod 127``.
6. The first tokens keep k more bits: ``r = clip(floor((y * 2**-e - s + 0.5) * 2**k), 0, 2**k - 1)``.

Back: ``(offset + gain/256 * s * 2**e) * step`` with ``step = 1 / inverse`` correctly rounded, or, refined,
``(offset + (s + (r + 0.5) / 2**k - 0.5) * 2**e) * step``; all but the last product are exact, then the value is rounded
to the dtype.

The inverse has 8 significant bits, so that its product with a 16-bit float is exact and symbols do not depend on
whether a device fuses multiplication and addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcache_kit_kernels.backends import implementation
from lmcache_kit_kernels.quantize.arguments import DTYPES, check_blocks
from lmcache_kit_kernels.statistics.api import check_tokens
from lmcache_kit_kernels.tables import UNIT_GAIN
from lmcache_kit_kernels.uniform.arguments import LEVELS, MAX_CHANNELS, check_refinement, check_scales

__all__ = ["Uniform", "check_shape", "dequantize", "quantize"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Uniform:
    """Quantized blocks.

    Args:
        exponents: uint8 ``[B, T]``, 0 to 16.
        inverses: uint16 ``[B]``, bfloat16 patterns.
        offsets: int16 ``[B, C]``.
        symbols: uint8 ``[B, T, C]`` below 127.
        refinements: uint8 ``[B, R, C]`` below ``2**bits``, or None.
        usable: bool ``[B]``. False for blocks with an infinity or NaN, sums that overflow, a largest magnitude below
            2**-50 that is not zero, an inverse outside 2**-100 to 2**100, an offset beyond 32,767 or an exponent
            beyond 16. The other arrays hold a block of zeros there.
    """

    exponents: Array
    inverses: Array
    offsets: Array
    symbols: Array
    refinements: Array | None
    usable: Array


def check_shape(blocks: Array) -> None:
    """Raises ValueError unless ``blocks`` is ``[B, T, C]`` of a supported dtype, within the sums' bounds."""
    check_blocks(blocks)
    check_tokens(blocks.shape[1])
    if not 1 <= blocks.shape[2] <= MAX_CHANNELS:
        raise ValueError(f"a block has 1 to {MAX_CHANNELS} channels, not {blocks.shape[2]}")


def quantize(
    blocks: Array,
    ratio: int,
    *,
    log_variances: Array | None = None,
    refined_tokens: int = 0,
    refine_bits: int = 0,
    backend: str = "numpy",
) -> Uniform:
    """Symbols and scales of blocks.

    Args:
        blocks: ``[B, T, C]``, bfloat16, float16 or float32; T up to 65,536, C up to 131,072.
        ratio: bfloat16 pattern of deviation over step.
        log_variances: integers ``[B]``, M of each block where it is not to be measured.
        refined_tokens: how many of the first tokens are kept finer; more than there are means all.
        refine_bits: bits of each of their refinements: 1, 2 or 4, or 0 with no refined tokens.
        backend: ``numpy`` or ``xla``; all agree bit for bit.
    """
    check_shape(blocks)
    check_refinement(refined_tokens, refine_bits)
    if not 0 <= ratio < 1 << 15:
        raise ValueError(f"ratio must be the bfloat16 pattern of a positive number, got {ratio}")
    if log_variances is not None:
        log_variances = np.asarray(log_variances)
        if log_variances.shape != blocks.shape[:1] or np.any((log_variances < 0) | (log_variances >= 1 << 15)):
            raise ValueError(f"log variances must be {blocks.shape[0]} patterns of non-negative numbers")
        log_variances = log_variances.astype(np.int32)
    parts = implementation("uniform", backend).quantize(
        blocks, ratio, log_variances, min(refined_tokens, blocks.shape[1]), refine_bits
    )
    return Uniform(*parts)


def dequantize(
    quantized: Uniform,
    dtype: Any,
    gains: Array | None = None,
    *,
    refine_bits: int = 0,
    backend: str = "numpy",
) -> Array:
    """Blocks ``[B, T, C]`` of ``dtype``.

    Args:
        quantized: what :func:`quantize` returned; unusable blocks come back as zeros.
        dtype: bfloat16, float16 or float32.
        gains: uint16 ``[B, C]`` of at most 256, in 1/256; None: 256 everywhere.
        refine_bits: as given to :func:`quantize`.
        backend: as there.

    Raises CorruptStreamError for exponents or inverses out of range. The caller vouches for symbols below 127.
    """
    if np.dtype(dtype) not in DTYPES:
        raise ValueError(f"blocks are bfloat16, float16 or float32, not {dtype}")
    refined = 0 if quantized.refinements is None else quantized.refinements.shape[1]
    check_refinement(refined, refine_bits)
    check_scales(quantized.exponents, quantized.inverses)
    if gains is None:
        gains = np.full(quantized.offsets.shape, UNIT_GAIN, np.uint16)
    assert LEVELS == 127
    blocks: Array = implementation("uniform", backend).dequantize(
        quantized.exponents,
        quantized.inverses,
        quantized.offsets,
        quantized.symbols,
        quantized.refinements,
        gains,
        np.dtype(dtype),
        refine_bits,
    )
    return blocks
