"""Layouts, and KV of every kind: as models make it, and as none ever did."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from lmcache_kit.kv.layout import DTYPES, DType, KVLayout, KVTensor

__all__ = ["any_bits", "finite_kv", "kv_tensors", "layouts"]

FINITE_KINDS = ("normal", "outliers", "sinks", "constant", "zeros", "denormals", "extremes", "mixed")


def layouts(
    *,
    max_layers: int = 3,
    max_heads: int = 3,
    max_dim: int = 40,
    dtypes: tuple[DType, ...] = DTYPES,  # type: ignore[assignment]
) -> st.SearchStrategy[KVLayout]:
    """Layouts with two planes or one, odd widths included.

    Args:
        max_layers, max_heads, max_dim: upper ends of layers, KV heads and head dimension; all start at 1.
        dtypes: element types to choose from.
    """
    usual = [width for width in (16, 32, 64, 128) if width <= max_dim]
    widths = st.integers(1, max_dim)
    return st.builds(
        KVLayout,
        num_layers=st.integers(1, max_layers),
        num_kv_heads=st.integers(1, max_heads),
        head_dim=st.sampled_from(usual) | widths if usual else widths,
        dtype=st.sampled_from(dtypes),
        planes=st.sampled_from([2, 1]),
    )


@st.composite
def any_bits(
    draw: st.DrawFn,
    shapes: st.SearchStrategy[KVLayout] | None = None,
    *,
    min_tokens: int = 0,
    max_tokens: int = 3,
) -> KVTensor:
    """KV of arbitrary bit patterns: NaN with payloads, infinities, subnormals, both zeros.

    Args:
        shapes: where the layout comes from; small ones by default, for every byte is drawn by itself.
        min_tokens, max_tokens: how many tokens.
    """
    layout = draw(layouts(max_layers=2, max_heads=2, max_dim=5) if shapes is None else shapes)
    num_tokens = draw(st.integers(min_tokens, max_tokens))
    size, width = layout.nbytes(num_tokens), layout.np_dtype.itemsize
    raw = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if raw and draw(st.booleans()):
        # Of bytes drawn one by one, few are NaN or infinite.
        places = st.integers(0, size // width - 1)
        for place, value in draw(st.dictionaries(places, _special_bits(layout.dtype), max_size=4)).items():
            raw[place * width : (place + 1) * width] = value.to_bytes(width, "little")
    return KVTensor.from_bytes(bytes(raw), layout, num_tokens)


def _special_bits(dtype: str) -> st.SearchStrategy[int]:
    """Bit patterns: NaN of every payload and sign, both infinities, both zeros, subnormals."""
    bits, mantissa = {"bfloat16": (16, 7), "float16": (16, 10), "float32": (32, 23)}[dtype]
    sign, infinity = 1 << (bits - 1), (1 << (bits - 1)) - (1 << mantissa)
    payload = st.integers(1, (1 << mantissa) - 1)
    plain = st.sampled_from([infinity, 0]) | payload | payload.map(lambda low: infinity | low)
    return st.builds(lambda value, negative: value | sign * negative, plain, st.booleans())


@st.composite
def finite_kv(
    draw: st.DrawFn,
    shapes: st.SearchStrategy[KVLayout] | None = None,
    *,
    min_tokens: int = 0,
    max_tokens: int = 3,
) -> KVTensor:
    """KV of arbitrary finite values over the whole range of its type; arguments as of :func:`any_bits`."""
    kv = draw(any_bits(shapes, min_tokens=min_tokens, max_tokens=max_tokens))
    data = kv.data.copy()
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = data.astype(np.float64)
    data[~np.isfinite(wide)] = draw(st.sampled_from([0.0, 1.0, -0.5, 1e-30, 60000.0]))
    return KVTensor(kv.layout, data)


@st.composite
def kv_tensors(
    draw: st.DrawFn,
    shapes: st.SearchStrategy[KVLayout] | None = None,
    *,
    min_tokens: int = 1,
    max_tokens: int = 40,
    special: bool = False,
    kinds: tuple[str, ...] = FINITE_KINDS,
) -> KVTensor:
    """KV as models make it, with what makes compression hard.

    Args:
        shapes: where the layout comes from; :func:`layouts` by default.
        min_tokens, max_tokens: how many tokens.
        special: put NaN and infinities here and there.
        kinds: what to choose from: ``normal`` values; ``outliers``, a few channels fifty times the others; ``sinks``,
            first tokens far larger than the rest; one ``constant``; ``zeros`` of either sign; ``denormals``;
            ``extremes`` of the type; ``mixed``, another kind in every layer and plane.
    """
    layout = draw(layouts() if shapes is None else shapes)
    num_tokens = draw(st.integers(min_tokens, max_tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(kinds))
    if kind == "mixed":
        single = tuple(each for each in kinds if each != "mixed") or ("normal",)
        data = np.empty(layout.shape(num_tokens), layout.np_dtype)
        for layer in range(layout.num_layers):
            for plane in range(layout.planes):
                data[layer, plane] = _values(single[int(rng.integers(len(single)))], rng, layout, data[0, 0].shape)
    else:
        data = _values(kind, rng, layout, layout.shape(num_tokens))
    if special and data.size:
        flat = data.reshape(-1)
        where = rng.integers(flat.size, size=int(rng.integers(1, 5)))
        flat[where] = rng.choice([np.nan, np.inf, -np.inf], size=len(where)).astype(layout.np_dtype)
    return KVTensor(layout, data)


def _values(kind: str, rng: np.random.Generator, layout: KVLayout, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Values ``[..., T, H, D]`` of the layout's type."""
    dtype = layout.np_dtype
    facts = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    if kind == "zeros":
        return np.where(rng.random(shape) < 0.5, 0.0, -0.0).astype(dtype)
    if kind == "constant":
        return np.full(shape, float(rng.standard_normal()) * 10.0 ** int(rng.integers(-3, 4)), dtype)
    if kind == "denormals":
        return (rng.integers(-20, 21, shape) * float(facts.smallest_subnormal)).astype(dtype)
    if kind == "extremes":
        ends = np.array([facts.max, facts.min, facts.smallest_normal, -facts.smallest_subnormal, 1.0], dtype)
        return rng.choice(ends, shape)
    values = rng.standard_normal(shape)
    if kind == "outliers":
        channels = rng.integers(shape[-1], size=max(1, shape[-1] // 16))
        values[..., channels] *= 50.0
    elif kind == "sinks":
        values[..., :2, :, :] *= 300.0
    return values.astype(dtype)
