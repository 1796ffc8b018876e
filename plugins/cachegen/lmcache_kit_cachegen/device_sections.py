"""The fixed parts of blocks on the device: what :mod:`lmcache_kit_cachegen.sections` does, in jax.

All blocks are coded (:attr:`Mode.CODED`). What a block's sections are depends on its levels alone, so everything has a
size that is known before a program is compiled.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_cachegen.header import Header, Mode, padded
from lmcache_kit_cachegen.sections import MAX_EXPONENT, TABLE_BITS, fixed_size, sections_of, symbol_bits

__all__ = ["check_of", "fixed_parts", "parse_fixed"]

Array = np.ndarray[Any, np.dtype[Any]]

_TINY = 2.0**-100


def _bytes(array: jax.Array) -> jax.Array:
    """uint8 ``[n, size]`` of ``array`` ``[n, ...]``, little-endian as the device is."""
    if array.dtype.itemsize > 1 or array.dtype != jnp.uint8:
        array = jax.lax.bitcast_convert_type(array, jnp.uint8)
    return array.reshape(array.shape[0], -1)


def _numbers(rows: jax.Array, dtype: Any) -> jax.Array:
    """Undo :func:`_bytes` for one axis."""
    size = jnp.dtype(dtype).itemsize
    shape = (rows.shape[0], -1) if size == 1 else (rows.shape[0], rows.shape[1] // size, size)
    return jax.lax.bitcast_convert_type(rows.reshape(shape), dtype)


def _pack(values: jax.Array, width: int) -> jax.Array:
    """uint8 ``[n, bytes]`` of integers ``[n, count]`` in ``width`` bits each."""
    values = values.astype(jnp.uint8)
    if 8 % width == 0:
        per = 8 // width
        values = jnp.pad(values, ((0, 0), (0, -values.shape[1] % per))).reshape(len(values), -1, per)
        places = jnp.arange(per, dtype=jnp.uint8) * width
        return jnp.sum(values << places, axis=2, dtype=jnp.uint8)
    bits = (values[..., None] >> jnp.arange(width, dtype=jnp.uint8)) & 1
    bits = bits.reshape(len(values), -1)
    bits = jnp.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).reshape(len(values), -1, 8)
    return jnp.sum(bits << jnp.arange(8, dtype=jnp.uint8), axis=2, dtype=jnp.uint8)


def _unpack(rows: jax.Array, count: int, width: int) -> jax.Array:
    """uint8 ``[n, count]``."""
    bits = (rows[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    bits = bits.reshape(len(rows), -1)[:, : count * width].reshape(len(rows), count, width)
    return jnp.sum(bits << jnp.arange(width, dtype=jnp.uint8), axis=2, dtype=jnp.uint8)


def _section(header: Header, name: str, array: jax.Array, levels: int) -> jax.Array:
    lmcache = header.quantizer == "lmcache"
    if name == "centres":
        if lmcache:
            return _pack(array, symbol_bits(levels))
        return _bytes(array.astype(jnp.int8 if header.offset_bytes == 1 else jnp.int16))
    if name == "tables":
        return _pack(array, TABLE_BITS)
    if name == "refinements":
        return _pack(array.reshape(len(array), -1), header.refine_bits)
    return _bytes(array)


def _rows(header: Header, levels: int, arrays: dict[str, jax.Array]) -> jax.Array:
    """Fixed parts uint8 ``[n, fixed_size]`` of blocks of these levels."""
    columns = []
    for name, size in sections_of(header, Mode.CODED, levels):
        if size:
            columns.append(_section(header, name, arrays[name], levels))
            columns.append(jnp.zeros((columns[-1].shape[0], padded(size) - size), jnp.uint8))
    return jnp.concatenate(columns, axis=1)


@functools.lru_cache(maxsize=64)
def _bytes_of_levels(header: Header, levels: tuple[int, ...]) -> tuple[tuple[int, Array, Array], ...]:
    """For each number of levels: its blocks, and which bytes of a chunk's fixed parts are theirs, ``[n, size]``."""
    sizes = np.array([fixed_size(header, Mode.CODED, level) for level in levels])
    starts = np.cumsum(sizes) - sizes
    found = []
    for level in sorted(set(levels)):
        some = np.flatnonzero(np.array(levels) == level)
        found.append((level, some, (starts[some][:, None] + np.arange(sizes[some[0]])).astype(np.int32)))
    return tuple(found)


def fixed_parts(header: Header, levels: tuple[int, ...], arrays: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The fixed parts of n chunks one after another, uint8 ``[n, size]``, and each one's part of its check ``[n, B]``.

    Args:
        header: of the chunks, with the widths that fit all their numbers.
        levels: of the B blocks of a chunk.
        arrays: ``scales, centres, tables, counts, states`` and, where the header says so, ``refinements``, each
            ``[n * B, ...]``.
    """
    count = len(levels)
    chunks = len(arrays["counts"]) // count
    plan = _bytes_of_levels(header, levels)
    rows, checks = [], []
    for level, some, _ in plan:
        pick = (np.arange(chunks)[:, None] * count + some).reshape(-1)
        chosen = arrays if len(some) == count else {name: array[pick] for name, array in arrays.items()}
        own = _rows(header, level, chosen)
        checks.append(check_of(own).reshape(chunks, len(some)))
        rows.append(own.reshape(chunks, -1))
    if len(plan) == 1:
        return rows[0], checks[0]
    # One gather puts everything in its place: a copy for each block would take longer than all of it.
    places = np.argsort(np.concatenate([places.reshape(-1) for _, _, places in plan]))
    order = np.argsort(np.concatenate([some for _, some, _ in plan]))
    return jnp.concatenate(rows, axis=1)[:, places], jnp.concatenate(checks, axis=1)[:, order]


def check_of(rows: jax.Array) -> jax.Array:
    """The weighted sum uint32 ``[n]`` of rows of bytes uint8 ``[n, size]``, size a multiple of 4."""
    words = _numbers(rows, jnp.uint16).astype(jnp.uint32)
    weights = 2 * jnp.arange(words.shape[1], dtype=jnp.uint32) + 1
    return jnp.sum(words * weights, axis=1, dtype=jnp.uint32)


def parse_fixed(
    header: Header, levels: tuple[int, ...], fixed: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Undo :func:`fixed_parts`: the arrays ``[n * B, ...]``, the checks ``[n, B]``, and whether all of it is something
    that an encoder writes. Where it is not, the arrays mean nothing, but every number is in its range."""
    count, chunks = len(levels), fixed.shape[0]
    found: dict[str, list[Any]] = {}
    checks, good = [], jnp.array(True)
    plan = _bytes_of_levels(header, levels)
    for level, some, places in plan:
        rows = fixed.reshape(chunks * count, -1) if len(plan) == 1 else fixed[:, places].reshape(-1, places.shape[1])
        arrays, right = _parse_rows(header, level, rows)
        # Writing them again must give the same bytes: that covers padding, and numbers spelled in another way.
        good &= right & jnp.all(_rows(header, level, arrays) == rows)
        checks.append(check_of(rows).reshape(chunks, len(some)))
        for name, array in arrays.items():
            found.setdefault(name, []).append(array.reshape(chunks, len(some), *array.shape[1:]))
    order = np.argsort(np.concatenate([some for _, some, _ in plan]))
    whole = {
        name: jnp.concatenate(parts, axis=1)[:, order].reshape(chunks * count, *parts[0].shape[2:])
        for name, parts in found.items()
    }
    return whole, jnp.concatenate(checks, axis=1)[:, order], good


def _parse_rows(header: Header, levels: int, rows: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    lmcache, channels = header.quantizer == "lmcache", header.channels
    arrays: dict[str, jax.Array] = {}
    good = jnp.array(True)
    start = 0
    for name, size in sections_of(header, Mode.CODED, levels):
        section = rows[:, start : start + size]
        start += padded(size)
        if name == "scales" and lmcache:
            maxima = _numbers(section, header.layout.np_dtype)
            bits = _numbers(section, f"uint{8 * maxima.dtype.itemsize}")
            wide = maxima.astype(jnp.float32)
            good &= jnp.all((bits == 0) | ((wide >= _TINY) & (wide < jnp.inf)))
            arrays[name] = maxima
        elif name == "scales":
            exponents = section if size else jnp.zeros((len(rows), header.num_tokens), jnp.uint8)
            good &= jnp.all(exponents <= MAX_EXPONENT)
            arrays[name] = jnp.minimum(exponents, MAX_EXPONENT)
        elif name == "centres" and lmcache:
            centres = _unpack(section, channels, symbol_bits(levels))
            good &= jnp.all(centres < levels)
            arrays[name] = jnp.minimum(centres, levels - 1).astype(jnp.uint8)
        elif name == "centres":
            offsets = _numbers(section, jnp.int8 if header.offset_bytes == 1 else jnp.int16).astype(jnp.int16)
            good &= jnp.all(offsets > -(2**15))
            arrays[name] = offsets
        elif name == "tables":
            arrays[name] = _unpack(section, channels, TABLE_BITS)
        elif name == "refinements":
            values = _unpack(section, header.refined_tokens * channels, header.refine_bits)
            arrays[name] = values.reshape(len(rows), header.refined_tokens, channels)
        else:
            arrays[name] = _numbers(section, jnp.uint32)
    states = arrays["states"]
    good &= jnp.all(states >= 1 << 16)
    arrays["states"] = states
    return arrays, good
