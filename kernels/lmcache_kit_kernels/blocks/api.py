"""Encode and decode whole blocks on any backend.

A backend's module has functions of the same names and arguments (without ``backend``) that may trust them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lmcache_kit_kernels.backends import implementation
from lmcache_kit_kernels.blocks.records import Coded, Quantized, Settings
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.quantize.arguments import DTYPES
from lmcache_kit_kernels.rans.api import LOWER_BOUND, groups_of
from lmcache_kit_kernels.tables import NUM_TABLES, UNIT_GAIN
from lmcache_kit_kernels.uniform.api import check_shape
from lmcache_kit_kernels.uniform.arguments import check_scales

__all__ = ["decode", "dequantize", "encode", "quantize"]

Array = np.ndarray[Any, np.dtype[Any]]


def encode(blocks: Array, settings: Settings, *, backend: str = "numpy") -> Coded:
    """Quantize and code blocks.

    Args:
        blocks: ``[B, T, C]``, bfloat16, float16 or float32, at least one token and channel; up to 65,536 tokens and
            131,072 channels.
        settings: how; ``levels`` has B entries and ``fold`` divides C. More refined tokens than there are mean all.
        backend: one of ``backends_of("blocks")``. All return the same arrays of usable blocks, bit for bit.
    """
    settings = _settings_for(blocks, settings)
    if blocks.shape[2] % settings.fold:
        raise ValueError(f"a fold of {settings.fold} does not divide {blocks.shape[2]} channels")
    coded: Coded = implementation("blocks", backend).encode(blocks, settings)
    return coded


def decode(coded: Coded, settings: Settings, dtype: Any, *, backend: str = "numpy") -> Array:
    """Blocks ``[B, T, C]``: exactly ``dequantize(quantize(blocks))`` with the gains of the channels' tables.

    Args:
        coded: what :func:`encode` returned for these settings, or something read from outside.
        settings: as given to :func:`encode`; ratio and log variances are not looked at.
        dtype: bfloat16, float16 or float32; for ``lmcache`` that of the scales.
        backend: as there.

    Raises:
        CorruptStreamError: a number is outside its range, or the words do not decode to the end. Nothing outside the
            arrays is read, whatever they hold.
        ValueError: the arrays' shapes or dtypes do not fit together.
    """
    count, tokens, channels = _check_coded(coded, settings, np.dtype(dtype))
    lanes = channels // settings.fold
    groups = groups_of(lanes, min(settings.group, lanes))
    if coded.states.shape != (count, lanes) or coded.counts.shape != (count, groups):
        raise ValueError(f"states must be [{count}, {lanes}] and counts [{count}, {groups}] for these blocks")
    if int(coded.counts.sum(dtype=np.uint64)) != coded.words.size:
        raise CorruptStreamError("word counts do not add up to the words at hand")
    if count and int(coded.states.min()) < LOWER_BOUND:
        raise CorruptStreamError("a lane starts below the range of coder states")
    blocks: Array = implementation("blocks", backend).decode(coded, settings, np.dtype(dtype))
    assert blocks.shape == (count, tokens, channels)
    return blocks


def quantize(blocks: Array, settings: Settings, *, backend: str = "numpy") -> Quantized:
    """Quantize without coding: what :func:`encode` codes. Arguments as there; fold, group and tables do not matter."""
    quantized: Quantized = implementation("blocks", backend).quantize(blocks, _settings_for(blocks, settings))
    return quantized


def dequantize(
    quantized: Quantized, settings: Settings, dtype: Any, gains: Array | None = None, *, backend: str = "numpy"
) -> Array:
    """Blocks ``[B, T, C]`` of ``dtype`` from what :func:`quantize` returned.

    Args:
        quantized: symbols and scales.
        settings: as given to :func:`quantize`.
        dtype: bfloat16, float16 or float32; for ``lmcache`` that of the scales.
        gains: ``uniform``: uint16 ``[B, C]``, at most 256; None: 256 everywhere, as for a block that was not coded.
        backend: as there.

    Raises CorruptStreamError for a symbol, exponent, inverse or refinement outside its range, ValueError for shapes
    that do not fit together.
    """
    _check_scales(quantized, settings, np.dtype(dtype), quantized.symbols.shape)
    symbols = quantized.symbols
    if symbols.dtype != np.uint8:
        raise ValueError(f"symbols must be uint8, not {symbols.dtype}")
    if symbols.size and np.any(symbols.max(axis=(1, 2)) >= np.array(settings.levels)):
        raise CorruptStreamError("a symbol is not below its block's levels")
    if gains is not None and (
        settings.quantizer != "uniform" or gains.shape != quantized.centres.shape or np.any(gains > UNIT_GAIN)
    ):
        raise ValueError(f"gains are for the uniform quantizer, one of at most {UNIT_GAIN} per channel")
    blocks: Array = implementation("blocks", backend).dequantize(quantized, settings, np.dtype(dtype), gains)
    return blocks


def _settings_for(blocks: Array, settings: Settings) -> Settings:
    check_shape(blocks)
    if len(settings.levels) != blocks.shape[0]:
        raise ValueError(f"there are {len(settings.levels)} numbers of levels for {blocks.shape[0]} blocks")
    if settings.refined_tokens > blocks.shape[1]:
        return dataclasses.replace(settings, refined_tokens=blocks.shape[1])
    return settings


def _check_coded(coded: Coded, settings: Settings, dtype: np.dtype[Any]) -> tuple[int, int, int]:
    if coded.scales.ndim != 2 or coded.centres.ndim != 2:
        raise ValueError("scales and centres must be [B, T] and [B, C]")
    count, tokens = coded.scales.shape
    channels = coded.centres.shape[1]
    if tokens < 1 or channels < 1 or channels % settings.fold:
        raise ValueError(f"{tokens} tokens of {channels} channels cannot be coded with a fold of {settings.fold}")
    _check_scales(coded, settings, dtype, (count, tokens, channels))
    if coded.tables.shape != (count, channels) or coded.tables.dtype != np.uint8:
        raise ValueError("tables must be uint8 [B, C]")
    if coded.states.dtype != np.uint32 or coded.counts.dtype != np.uint32 or coded.words.dtype != np.uint16:
        raise ValueError("states and counts must be uint32 and words uint16")
    if (coded.flags is None) == bool(settings.anchor_group):
        raise ValueError("flags and an anchor group come together")
    if coded.flags is not None and (coded.flags.shape != (count, channels) or coded.flags.dtype != np.bool_):
        raise ValueError("flags must be bool [B, C]")
    if count and int(coded.tables.max()) >= NUM_TABLES:
        raise CorruptStreamError(f"there is no table {int(coded.tables.max())}")
    if settings.quantizer == "lmcache" and np.any(coded.centres >= np.array(settings.levels)[:, None]):
        raise CorruptStreamError("a centre is not below its block's levels")
    return count, tokens, channels


def _check_scales(given: Coded | Quantized, settings: Settings, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"blocks are bfloat16, float16 or float32, not {dtype}")
    uniform = settings.quantizer == "uniform"
    expected = [
        (given.scales, np.dtype(np.uint8) if uniform else dtype, shape[:2]),
        (given.inverses, np.dtype(np.uint16), shape[:1]),
        (given.centres, np.dtype(np.int16 if uniform else np.uint8), (shape[0], shape[2])),
    ]
    refinements = given.refinements
    if (refinements is None) == bool(settings.refined_tokens):
        raise ValueError("refinements and refined tokens come together")
    if refinements is not None:
        refined = min(settings.refined_tokens, shape[1])
        expected.append((refinements, np.dtype(np.uint8), (shape[0], refined, shape[2])))
    if len(settings.levels) != shape[0] or any(
        array.dtype != kind or array.shape != wanted for array, kind, wanted in expected
    ):
        got = ", ".join(f"{array.dtype} {list(array.shape)}" for array, *_ in expected)
        raise ValueError(f"scales, inverses, centres and refinements do not fit blocks {list(shape)}: {got}")
    if uniform:
        check_scales(given.scales, given.inverses)
    if refinements is not None and refinements.size and int(refinements.max()) >> settings.refine_bits:
        raise CorruptStreamError(f"a refinement does not fit {settings.refine_bits} bits")
