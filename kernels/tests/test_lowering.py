"""The Pallas kernels lower for an H100 on a machine without a GPU."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="lowering needs jax")

from jax.sharding import AbstractDevice, AbstractMesh  # noqa: E402  # after the check for jax
from lmcache_kit_kernels.blocks import Settings, pallas_pipeline, pallas_rows  # noqa: E402
from lmcache_kit_kernels.compaction import pallas_kernel as compaction  # noqa: E402
from lmcache_kit_kernels.quantize import pallas_kernels  # noqa: E402

BFLOAT16, FLOAT16, FLOAT32 = DTYPES = [ml_dtypes.bfloat16, np.float16, np.float32]
CHANNELS = [1, 40, 576, 1024]
BLOCKS, TOKENS = 2, 17  # tokens are taken eight at a time: twice in a loop, and one by itself


@pytest.fixture(autouse=True)
def h100():
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def shape(dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype)


def lowered(function, *arguments):
    """Names of the Triton kernels in the lowered program, in order, and the types of its results."""
    traced = jax.jit(function).trace(*arguments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "@__gpu$xla.gpu.triton" in line]
    return [name for call in calls for name in re.findall(r'\bname = "(\w+)"', call)], traced.out_info


def lowered_kernels(function, *arguments):
    return lowered(lambda *given: function(*given, interpret=False), *arguments)[0]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_of_tokens_and_of_channels(dtype, channels):
    values, per_token = shape(dtype, BLOCKS, TOKENS, channels), shape(dtype, BLOCKS, TOKENS)
    inverse, offsets = shape(np.float32, BLOCKS), shape(np.float32, BLOCKS, channels)
    symbols, steps = shape(np.uint8, BLOCKS, TOKENS, channels), shape(np.float32, BLOCKS, 128)
    zero, levels = shape(np.uint32, 1), shape(np.int32, BLOCKS)
    assert lowered_kernels(pallas_rows.token_maxima, values) == ["token_maxima"]
    assert lowered_kernels(pallas_rows.channel_sums, values) == ["channel_sums"]
    assert lowered_kernels(pallas_rows.residual_maxima, values, inverse, offsets, zero) == ["residual_maxima"]
    assert lowered_kernels(pallas_kernels.quantize, values, levels) == ["quantize"]
    assert lowered_kernels(pallas_kernels.dequantize, symbols, per_token, steps) == ["dequantize"]


def test_compaction():
    scratch, counts = shape(np.uint16, BLOCKS, 3, 300), shape(np.uint32, BLOCKS, 3)
    places = shape(np.int32, BLOCKS, 3)
    assert lowered_kernels(compaction.compact, scratch, counts, places, counts, places) == ["compact"]
    assert lowered_kernels(compaction.weigh, shape(np.uint16, 900), counts, places, counts) == ["weigh"]


LMCACHE = {"quantizer": "lmcache", "levels": (31, 15)}
UNIFORM = {"quantizer": "uniform", "levels": (127, 127), "ratio": 0x4000}
REFINED = UNIFORM | {"refined_tokens": 9, "refine_bits": 2}
# Each dtype, number of channels and fold, with either quantizer; not each with each, which would take a minute.
SHAPES = [
    (BFLOAT16, 1, 1),
    (FLOAT16, 40, 2),
    (FLOAT32, 576, 1),
    (BFLOAT16, 1024, 2),
    (FLOAT32, 1024, 4),
]
CASES = [(options, *rest) for options in (LMCACHE, REFINED) for rest in SHAPES]


@pytest.mark.parametrize(("options", "dtype", "channels", "fold"), [*CASES, (UNIFORM, FLOAT16, 576, 4)])
def test_whole_blocks(options, dtype, channels, fold):
    settings = Settings(**options, fold=fold)
    plan, alphabets = pallas_pipeline.plan_for(settings, TOKENS)
    tables = pallas_pipeline.kernel_tables(settings.tables, alphabets)
    values = shape(dtype, BLOCKS, TOKENS, channels)
    names, coded = lowered(lambda x: pallas_pipeline.encode(x, plan, tables), values)
    before = ["channel_sums", "residual_maxima"] if settings.quantizer == "uniform" else ["token_maxima"]
    assert sorted(names) == sorted([*before, "encode", "compact"])
    names, (back, _) = lowered(lambda some: pallas_pipeline.decode(some, plan, tables, dtype), coded)
    assert names == ["decode"]
    assert (back.shape, back.dtype) == (values.shape, values.dtype)
