"""Both quantizers, compiled: from values to symbols and back, token by token.

Blocks of every dtype come and go as bytes, so that each function is compiled once. ``kind`` says what they hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmcache_kit_kernels.blocks.numba_compile import compiled, inlined, part

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "lmcache_dequantize",
    "lmcache_quantize",
    "uniform_dequantize",
    "uniform_quantize",
]

Array = np.ndarray[Any, np.dtype[Any]]

BFLOAT16, FLOAT16, FLOAT32 = 0, 1, 2

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_TO_FLOAT16_SCALE = np.float32(2.0**112)
_HALF_BITS = np.uint32(126 << 23)
_LEAST_LMCACHE = np.uint32((127 - 100) << 23)
_LEAST_UNIFORM = np.uint32((127 - 50) << 23)
_LEAST_SQUARED = np.uint32((127 - 60) << 23)
_ROUNDER = np.float32(1.5 * 2**23)  # a float32 of this size has no bits below 1
_LEAST_NORMAL = np.float32(2.0**-126)
_LEAST_INVERSE, _MOST_INVERSE = (127 - 100) << 7, (127 + 100) << 7
_MOST_OFFSET = np.float32(32767)
_MOST_EXPONENT = 16
_MIDDLE = np.float32(63)


@inlined
def _float(bits: Any) -> Any:
    """The float32 of a pattern."""
    return np.uint32(bits).view(np.float32)


@inlined
def _bits(value: Any) -> Any:
    """The pattern of a float32."""
    return np.float32(value).view(np.uint32)


@inlined
def _rint(value: Any) -> Any:
    """A float32 rounded half to even. Beyond 2**22 in magnitude the result is only close."""
    return np.float32(np.float32(value + _ROUNDER) - _ROUNDER)


@inlined
def _finite(value: Any) -> Any:
    return np.uint32(_bits(value) & _MAGNITUDE) < _INFINITY


@part
def _widen(raw: Array, kind: int, first: int, row: Array) -> None:
    """Fill float32 ``row`` with the values from number ``first`` on."""
    count = row.size
    if kind == FLOAT32:
        values = raw[4 * first : 4 * (first + count)].view(np.float32)
        for c in range(count):
            row[c] = values[c]
        return
    halves = raw[2 * first : 2 * (first + count)].view(np.uint16)
    bits = row.view(np.uint32)
    if kind == BFLOAT16:
        for c in range(count):
            bits[c] = np.uint32(halves[c]) << np.uint32(16)
        return
    for c in range(count):
        half = np.uint32(halves[c])
        shifted = np.uint32(np.uint32(half & np.uint32(0x7FFF)) << np.uint32(13))
        # Multiplying mends the bias of the exponent, for denormals as well; infinities and NaN are set apart.
        scaled = _bits(_float(shifted) * _TO_FLOAT16_SCALE)
        special = np.uint32(half & np.uint32(0x7C00)) == np.uint32(0x7C00)
        magnitude = np.uint32(shifted | _INFINITY) if special else scaled
        bits[c] = np.uint32(magnitude | np.uint32(np.uint32(half & np.uint32(0x8000)) << np.uint32(16)))


@part
def _narrow(row: Array, raw: Array, kind: int, first: int) -> None:
    """Round float32 ``row`` half to even into the values from number ``first`` on."""
    count = row.size
    if kind == FLOAT32:
        values = raw[4 * first : 4 * (first + count)].view(np.float32)
        for c in range(count):
            values[c] = row[c]
        return
    halves = raw[2 * first : 2 * (first + count)].view(np.uint16)
    bits = row.view(np.uint32)
    if kind == BFLOAT16:
        for c in range(count):
            halves[c] = _to_bfloat16(bits[c])
        return
    for c in range(count):
        magnitude = np.uint32(bits[c] & _MAGNITUDE)
        odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
        normal = np.uint32(np.uint32(magnitude - np.uint32(112 << 23) + np.uint32(0xFFF) + odd) >> np.uint32(13))
        # Adding 1/2 leaves a denormal's rounded bits at the bottom.
        denormal = np.uint32(_bits(_float(magnitude) + np.float32(0.5)) - _HALF_BITS)
        half = denormal if magnitude < np.uint32(113 << 23) else normal
        if magnitude >= np.uint32(143 << 23):
            half = np.uint32(0x7E00) if magnitude > _INFINITY else np.uint32(0x7C00)
        halves[c] = np.uint16(half | np.uint32(np.uint32(bits[c] & _SIGN) >> np.uint32(16)))


@inlined
def _to_bfloat16(bits: Any) -> Any:
    """Pattern of the nearest bfloat16, half to even, of the float32 of pattern ``bits``; NaN stays NaN."""
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    quiet = np.uint32(np.uint32(bits >> np.uint32(16)) | np.uint32(0x40))
    return np.uint16(quiet if np.uint32(bits & _MAGNITUDE) > _INFINITY else rounded)


@inlined
def _pattern(value: Any) -> Any:
    """Upper half of the bits of a float32."""
    return np.uint32(_bits(value) >> np.uint32(16))


@inlined
def _flushed(value: Any) -> Any:
    """A float32, denormals as zero."""
    return np.float32(0) if abs(value) < _LEAST_NORMAL else value


@compiled
def lmcache_quantize(raw: Array, kind: int, levels: Array, symbols: Array, maxima: Array, usable: Array) -> None:
    """Fill symbols uint8 ``[B, T, C]``, maxima ``[B, T]`` (patterns in the dtype, as uint32) and usable ``[B]``."""
    count, tokens, channels = symbols.shape
    row = np.empty(channels, np.float32)
    for block in range(count):
        middle = np.float32(levels[block] // 2)
        usable[block] = True
        for token in range(tokens):
            _widen(raw, kind, (block * tokens + token) * channels, row)
            bits = row.view(np.uint32)
            top = np.uint32(0)
            for c in range(channels):
                top = max(top, np.uint32(bits[c] & _MAGNITUDE))
            maxima[block, token] = _back(top, kind)
            line = symbols[block, token]
            if top != 0 and (top < _LEAST_LMCACHE or top >= _INFINITY):
                usable[block] = False
                for c in range(channels):
                    line[c] = np.uint8(middle)
                continue
            factor = np.float32(0)
            if top != 0:
                factor = middle / _float(top)
            for c in range(channels):
                scaled = row[c] * factor
                line[c] = np.uint8(np.int32(_rint(scaled + middle)))


@inlined
def _back(magnitude: Any, kind: int) -> Any:
    """Pattern in the dtype of a magnitude that was widened from it."""
    if kind == FLOAT32:
        return magnitude
    if kind == BFLOAT16:
        return np.uint32(magnitude >> np.uint32(16))
    if magnitude >= _INFINITY:
        return np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(0x7FFF))
    if magnitude < np.uint32(113 << 23):
        return np.uint32(_bits(_float(magnitude) + np.float32(0.5)) - _HALF_BITS)
    return np.uint32(np.uint32(magnitude - np.uint32(112 << 23)) >> np.uint32(13))


@compiled
def lmcache_dequantize(symbols: Array, maxima: Array, levels: Array, kind: int, raw: Array) -> None:
    """Fill ``raw`` from symbols uint8 ``[B, T, C]`` and maxima float32 ``[B, T]``."""
    count, tokens, channels = symbols.shape
    row = np.empty(channels, np.float32)
    for block in range(count):
        middle = np.float32(levels[block] // 2)
        for token in range(tokens):
            line = symbols[block, token]
            maximum = maxima[block, token]
            for c in range(channels):
                row[c] = ((np.float32(line[c]) - middle) / middle) * maximum
            _narrow(row, raw, kind, (block * tokens + token) * channels)


@compiled
def uniform_quantize(
    raw: Array, kind: int, ratio: int, given: Array, refine_bits: int, symbols: Array, exponents: Array,
    inverses: Array, offsets: Array, refinements: Array, usable: Array,
) -> None:  # fmt: skip
    """Fill symbols uint8 ``[B, T, C]``, exponents uint8 ``[B, T]``, inverses uint16 ``[B]``, offsets int16 ``[B, C]``,
    refinements uint8 ``[B, R, C]`` (R = 0: none) and usable ``[B]``. ``given`` int64 holds M per block, or nothing.
    What belongs to a block that is not usable is left undefined.
    """
    count, tokens, channels = symbols.shape
    row = np.empty(channels, np.float32)
    sums, squares = np.empty(channels, np.float32), np.empty(channels, np.float32)
    moved = np.empty(channels, np.float32)
    for block in range(count):
        start = block * tokens
        top = _moments(raw, kind, start, tokens, row, sums, squares)
        inverse_bits = np.int64(0)
        good: Any = _usable_moments(top, sums, squares, tokens)
        if top != 0:
            mean_log = given[block] if given.size else np.int64(_mean_log(sums, squares))
            inverse_bits = np.int64(ratio) + 8128 - (mean_log >> 1)
            good = good and _LEAST_INVERSE <= inverse_bits <= _MOST_INVERSE
        else:
            inverse_bits = np.int64(0x3F80)
        if good:
            inverse = _float(inverse_bits << 16)
            inverses[block] = inverse_bits
            for c in range(channels):
                moved[c] = _rint(sums[c] * inverse)
                good = good and abs(moved[c]) <= _MOST_OFFSET
        if good:
            for c in range(channels):
                offsets[block, c] = np.int16(moved[c])
            good = _uniform_tokens(
                raw, kind, start, inverse, moved, row, symbols[block], exponents[block], refinements[block], refine_bits
            )
        usable[block] = good


@part
def _moments(raw: Array, kind: int, start: int, tokens: int, row: Array, sums: Array, squares: Array) -> Any:
    """Sums of values and squares per channel, token after token; returns the largest magnitude's pattern."""
    channels = row.size
    for c in range(channels):
        sums[c] = np.float32(0)
        squares[c] = np.float32(0)
    top = np.uint32(0)
    for token in range(tokens):
        _widen(raw, kind, (start + token) * channels, row)
        bits = row.view(np.uint32)
        for c in range(channels):
            top = max(top, np.uint32(bits[c] & _MAGNITUDE))
        if kind == FLOAT32:
            for c in range(channels):
                bits[c] = np.uint32(_to_bfloat16(bits[c])) << np.uint32(16)
        for c in range(channels):
            value = row[c] if np.uint32(bits[c] & _MAGNITUDE) >= _LEAST_SQUARED else np.float32(0)
            sums[c] += value
            squares[c] += value * value
    return top


@part
def _usable_moments(top: Any, sums: Array, squares: Array, tokens: int) -> bool:
    """Whether all moments are finite and values not all too small; turns ``sums`` into means and ``squares`` into
    variances."""
    share = np.float32(1) / np.float32(tokens)
    finite = top < _INFINITY
    for c in range(sums.size):
        mean = sums[c] * share
        variance = _flushed(_flushed(squares[c] * share) - _flushed(mean * mean))
        finite = finite and _finite(sums[c]) and _finite(squares[c]) and _finite(variance)
        sums[c] = mean
        squares[c] = max(np.float32(0), variance)
    return bool(finite and (top == 0 or top >= _LEAST_UNIFORM))


@part
def _mean_log(means: Array, variances: Array) -> Any:
    """Mean of the variances' patterns: their mean logarithm, with channels that hardly vary lifted to a floor."""
    most: Any = np.int64(0)
    most_mean: Any = np.int64(0)
    for c in range(means.size):
        most = max(most, np.int64(_pattern(variances[c])))
        most_mean = max(most_mean, np.int64(_pattern(_flushed(means[c] * means[c]))))
    floor = max(most - 16 * 128, most_mean - 18 * 128, 0)
    total: Any = np.int64(0)
    for c in range(means.size):
        total += max(np.int64(_pattern(variances[c])), floor)
    return total // means.size


@part
def _uniform_tokens(
    raw: Array, kind: int, start: int, inverse: Any, offsets: Array, row: Array, symbols: Array, exponents: Array,
    refinements: Array, refine_bits: int,
) -> bool:  # fmt: skip
    """Symbols, exponents and refinements of a block; False if a token lies too far out."""
    tokens, channels = symbols.shape
    for token in range(tokens):
        _widen(raw, kind, (start + token) * channels, row)
        bits = row.view(np.uint32)
        top = np.uint32(0)
        for c in range(channels):
            row[c] = row[c] * inverse - offsets[c]
            top = max(top, np.uint32(bits[c] & _MAGNITUDE))
        exponent, scale = 0, np.float32(1)
        while _rint(_float(top) * scale) > _MIDDLE:
            exponent += 1
            scale *= np.float32(0.5)
            if exponent > _MOST_EXPONENT:
                return False
        exponents[token] = exponent
        line = symbols[token]
        for c in range(channels):
            symbol = np.int32(_rint(row[c] * scale))
            line[c] = np.uint8(symbol + np.int32(127) if symbol < 0 else symbol)
        if token < refinements.shape[0]:
            parts = np.float32(1 << refine_bits)
            most = np.int32((1 << refine_bits) - 1)
            fine = refinements[token]
            for c in range(channels):
                scaled = row[c] * scale
                part = np.int32((scaled - _rint(scaled) + np.float32(0.5)) * parts)  # not negative: rounded down
                fine[c] = np.uint8(min(part, most))
    return True


@compiled
def uniform_dequantize(
    symbols: Array, exponents: Array, inverses: Array, offsets: Array, refinements: Array, refine_bits: int,
    gains: Array, kind: int, raw: Array,
) -> None:  # fmt: skip
    """Fill ``raw``. gains float32 ``[B, C]`` are of 1; refinements ``[B, R, C]`` with R = 0 for none."""
    count, tokens, channels = symbols.shape
    row = np.empty(channels, np.float32)
    centres = np.empty(channels, np.float32)
    parts = np.float32(1) / np.float32(1 << refine_bits)
    for block in range(count):
        step = np.float32(1) / _float(np.uint32(inverses[block]) << np.uint32(16))
        for c in range(channels):
            centres[c] = np.float32(offsets[block, c])
        gain = gains[block]
        for token in range(tokens):
            line = symbols[block, token]
            scale = _float((np.uint32(127) + np.uint32(exponents[block, token])) << np.uint32(23))
            if token < refinements.shape[1]:
                fine = refinements[block, token]
                for c in range(channels):
                    symbol = np.int32(line[c])
                    signed = np.float32(symbol - np.int32(127) if symbol > 63 else symbol)
                    place = (np.float32(fine[c]) + np.float32(0.5)) * parts - np.float32(0.5)
                    row[c] = (centres[c] + (signed + place) * scale) * step
            else:
                for c in range(channels):
                    symbol = np.int32(line[c])
                    signed = np.float32(symbol - np.int32(127) if symbol > 63 else symbol)
                    row[c] = (centres[c] + gain[c] * signed * scale) * step
            _narrow(row, raw, kind, (block * tokens + token) * channels)
