"""The fixed parts of blocks on the device: what :mod:`lmcache_kit_cachegen.sections` does, in jax.

All blocks are coded (:attr:`Mode.CODED`). Chunks of one shape differ in how wide their numbers are, their variant, and
blocks in their levels. So every section is made in all the forms that any of them has, and one gather takes those that
a chunk's fixed parts consist of; reading gathers them back. One program serves all variants.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from lmcache_kit_kernels.packing import packed_size

from lmcache_kit_cachegen.header import Header, Mode, padded
from lmcache_kit_cachegen.sections import MAX_EXPONENT, TABLE_BITS, fixed_size, sections_of, symbol_bits

__all__ = ["FixedLayout", "fixed_words", "parse_fixed"]

Array = np.ndarray[Any, np.dtype[Any]]

_TINY = 2.0**-100


class _Form(NamedTuple):
    """A section in numbers of ``bits`` each, which takes ``words`` of 32 bits."""

    name: str
    bits: int
    words: int


class FixedLayout:
    """Which words the fixed parts of a chunk consist of.

    Args:
        headers: of the V variants.
        levels: of the B blocks of a chunk.

    Attributes:
        forms: all forms of all sections; a block has S words in them.
        words: uint32 words F of the fixed parts of a chunk, at most.
        sizes: int64 ``[V, B]``, uint32 words of each block's fixed part.
        to_write: int32 ``[V, F]``, which of a chunk's ``B * (S + 1)`` words, a zero behind those of each block, come
            after one another; short fixed parts have zeros in front.
        to_read: int32 ``[V, B * S]``, which word of the fixed parts is which of a form; -1 if the variant has none.
    """

    def __init__(self, headers: tuple[Header, ...], levels: tuple[int, ...]) -> None:
        self.header = headers[0]
        self.levels = levels
        sizes = [[fixed_size(header, Mode.CODED, level) // 4 for level in levels] for header in headers]
        self.sizes = np.array(sizes, np.int64)
        self.words = int(self.sizes.sum(axis=1).max())
        forms: dict[tuple[str, int], _Form] = {}
        for header in headers:
            for level in sorted(set(levels)):
                for form in _forms(header, level):
                    forms.setdefault(form[:2], form)
        self.forms = tuple(forms.values())
        ends = np.cumsum([form.words for form in self.forms])
        self.block_words = int(ends[-1])
        own = {form[:2]: int(end) - form.words for form, end in zip(self.forms, ends, strict=True)}
        self.to_write = np.full((len(headers), self.words), self.block_words, np.int32)
        to_read = np.full((len(headers), len(levels), self.block_words), -1, np.int32)
        for variant, header in enumerate(headers):
            place = 0
            skipped = self.words - int(self.sizes[variant].sum())
            for block, level in enumerate(levels):
                for form in _forms(header, level):
                    there = np.arange(place, place + form.words)
                    within = own[form[:2]] + np.arange(form.words)
                    self.to_write[variant, skipped + there] = block * (self.block_words + 1) + within
                    to_read[variant, block, within] = there
                    place += form.words
        self.to_read = to_read.reshape(len(headers), -1)


def _forms(header: Header, levels: int) -> list[_Form]:
    """Of the sections of a block, in their order."""
    return [
        _Form(name, _bits(header, name, levels), padded(size) // 4)
        for name, size in sections_of(header, Mode.CODED, levels)
        if size
    ]


def _bits(header: Header, name: str, levels: int) -> int:
    lmcache = header.quantizer == "lmcache"
    if name == "scales":
        return 8 * header.layout.np_dtype.itemsize if lmcache else 8
    if name == "centres":
        return symbol_bits(levels) if lmcache else 8 * header.offset_bytes
    return {"tables": TABLE_BITS, "refinements": header.refine_bits}.get(name, 32)


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


def _form_words(form: _Form, array: jax.Array) -> jax.Array:
    """uint32 ``[n, form.words]`` of a section's array ``[n, ...]``; what does not fit the form loses its upper bits."""
    if form.bits < 8:
        rows = _pack(array.reshape(len(array), -1), form.bits)
    elif form.name == "centres":
        rows = _bytes(array.astype(f"int{form.bits}"))
    else:
        rows = _bytes(array)
    return _numbers(jnp.pad(rows, ((0, 0), (0, 4 * form.words - rows.shape[1]))), jnp.uint32)


def _all_forms(layout: FixedLayout, arrays: dict[str, jax.Array]) -> jax.Array:
    """uint32 ``[n * B, S]``."""
    return jnp.concatenate([_form_words(form, arrays[form.name]) for form in layout.forms], axis=1)


def fixed_words(layout: FixedLayout, arrays: dict[str, jax.Array], variants: jax.Array) -> jax.Array:
    """The fixed parts of n chunks, uint32 ``[n, F]``, zeros in front where a chunk's variant needs fewer words.

    Args:
        layout: of the chunks.
        arrays: ``scales, centres, tables, counts, states`` and, where the header says so, ``refinements``, each
            ``[n * B, ...]``.
        variants: int32 ``[n]``.
    """
    words = jnp.pad(_all_forms(layout, arrays), ((0, 0), (0, 1))).reshape(len(variants), -1)
    return jnp.take_along_axis(words, _of_variant(layout.to_write, variants), axis=1, mode="promise_in_bounds")


def _of_variant(table: Array, variants: jax.Array) -> jax.Array:
    """The row of ``table`` ``[V, N]`` of each chunk, ``[n, N]``."""
    if len(table) == 1:
        return jnp.broadcast_to(jnp.asarray(table), (len(variants), table.shape[1]))
    return jnp.asarray(table)[jnp.clip(variants, 0, len(table) - 1)]


def parse_fixed(layout: FixedLayout, fixed: jax.Array, variants: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """The arrays ``[n * B, ...]`` of chunks whose words uint32 ``[n, N]`` begin with their fixed parts, and whether all
    of those is something that an encoder writes. Where it is not, the arrays mean nothing, but every number is in its
    range."""
    places = _of_variant(layout.to_read, variants)
    words = jnp.take_along_axis(fixed, jnp.maximum(places, 0), axis=1, mode="promise_in_bounds")
    words = jnp.where(places < 0, 0, words).reshape(-1, layout.block_words)
    found: dict[str, list[tuple[_Form, jax.Array]]] = {}
    start = 0
    for form in layout.forms:
        rows = _bytes(words[:, start : start + form.words])
        found.setdefault(form.name, []).append((form, rows))
        start += form.words
    variants = jnp.repeat(variants, len(layout.levels), total_repeat_length=len(words))
    arrays, good = _parse(layout, found, variants)
    # Writing them again must give the same words: that covers padding, and numbers spelled in another way.
    same = (places < 0).reshape(words.shape) | (_all_forms(layout, arrays) == words)
    return arrays, good & jnp.all(same)


def _parse(
    layout: FixedLayout, found: dict[str, list[tuple[_Form, jax.Array]]], variants: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The arrays of the bytes ``[n * B, ...]`` of all forms."""
    header = layout.header
    lmcache, channels = header.quantizer == "lmcache", header.channels
    blocks = len(variants)
    arrays: dict[str, jax.Array] = {}
    ((_, rows),) = found["scales"]
    if lmcache:
        maxima = _numbers(rows[:, : header.num_tokens * header.layout.np_dtype.itemsize], header.layout.np_dtype)
        bits = _numbers(_bytes(maxima), f"uint{8 * maxima.dtype.itemsize}")
        wide = maxima.astype(jnp.float32)
        good = jnp.all((bits == 0) | ((wide >= _TINY) & (wide < jnp.inf)))
        arrays["scales"] = maxima
        levels = jnp.asarray(np.tile(np.array(layout.levels, np.int32), blocks // len(layout.levels)))[:, None]
        centres = jnp.zeros((blocks, channels), jnp.uint8)
        for form, rows in found["centres"]:
            mine = np.array([symbol_bits(level) == form.bits for level in layout.levels])
            mine = np.tile(mine, blocks // len(mine))[:, None]
            centres = jnp.where(mine, _unpack(rows, channels, form.bits), centres)
        good &= jnp.all(centres < levels)
        arrays["centres"] = jnp.minimum(centres, levels - 1).astype(jnp.uint8)
    else:
        exponents = rows[:, : header.num_tokens]  # zeros where the variant has none
        good = jnp.all(exponents <= MAX_EXPONENT)
        arrays["scales"] = jnp.minimum(exponents, MAX_EXPONENT)
        narrow, wide = (
            _numbers(rows[:, : channels * form.bits // 8], f"int{form.bits}").astype(jnp.int16)
            for form, rows in found["centres"]
        )
        offsets = jnp.where((variants >= 2)[:, None], wide, narrow)
        good &= jnp.all(offsets > -(2**15))
        arrays["centres"] = offsets
    for name, count in (("tables", channels), ("refinements", header.refined_tokens * channels)):
        if name in found:
            ((form, rows),) = found[name]
            values = _unpack(rows[:, : packed_size(count, form.bits)], count, form.bits)
            arrays[name] = values if name == "tables" else values.reshape(blocks, header.refined_tokens, channels)
    for name in ("counts", "states"):
        ((_, rows),) = found[name]
        arrays[name] = _numbers(rows, jnp.uint32)
    return arrays, good & jnp.all(arrays["states"] >= 1 << 16)
