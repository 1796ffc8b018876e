"""Pallas implementation: fused kernels on the GPU.

What the kernels are not made for (anchors, groups other than a warp, short chunks with many channels a lane) is done by
the XLA implementation on the same device; the arrays are the same.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcache_kit_kernels.blocks import pallas_pipeline as pipeline
from lmcache_kit_kernels.blocks import xla
from lmcache_kit_kernels.blocks.records import Coded, Settings
from lmcache_kit_kernels.blocks.xla import dequantize, quantize
from lmcache_kit_kernels.errors import CorruptStreamError
from lmcache_kit_kernels.quantize.api import representable
from lmcache_kit_kernels.rans.xla import room_for

__all__ = ["decode", "dequantize", "encode", "quantize"]

Array = np.ndarray[Any, np.dtype[Any]]


def encode(blocks: Array, settings: Settings, *, interpret: bool = False) -> Coded:
    """See :func:`lmcache_kit_kernels.blocks.encode`."""
    if not pipeline.supported(settings):
        return xla.encode(blocks, settings)
    plan, alphabets = pipeline.plan_for(settings, blocks.shape[1])
    tables = pipeline.kernel_tables(settings.tables, alphabets)
    coded = pipeline.encode(jnp.asarray(blocks), plan, tables, interpret=interpret)
    scales, counts = np.asarray(coded.scales), np.asarray(coded.counts)
    return Coded(
        scales,
        np.asarray(coded.inverses),
        np.asarray(coded.centres),
        np.asarray(coded.tables),
        None,
        None if coded.refinements is None else np.asarray(coded.refinements),
        np.asarray(coded.states),
        counts,
        np.asarray(coded.words)[: int(counts.sum(dtype=np.int64))],
        np.asarray(coded.usable) if plan.uniform else representable(scales),
    )


def decode(coded: Coded, settings: Settings, dtype: np.dtype[Any], *, interpret: bool = False) -> Array:
    """See :func:`lmcache_kit_kernels.blocks.decode`."""
    if not pipeline.supported(settings):
        return xla.decode(coded, settings, dtype)
    plan, alphabets = pipeline.plan_for(settings, coded.scales.shape[1])
    arrays: Any = (
        coded.scales,
        coded.inverses,
        coded.centres,
        coded.tables,
        coded.refinements,
        coded.states,
        coded.counts,
        room_for(coded.words),
        np.zeros(len(coded.inverses), np.uint32),
        coded.usable,
        np.zeros(1, np.int32),
    )
    tables = pipeline.kernel_tables(settings.tables, alphabets)
    on_device = pipeline.DeviceCoded(*jax.device_put(arrays))
    blocks, good = pipeline.decode(on_device, plan, tables, dtype, interpret=interpret)
    if not good:
        raise CorruptStreamError("a run of words does not decode to the state and place where it must end")
    return np.asarray(blocks)
