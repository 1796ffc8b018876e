"""The Pallas kernels lower for an H100 on a machine without a GPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="lowering needs jax")

from jax.sharding import AbstractDevice, AbstractMesh  # noqa: E402  # after the check for jax
from lmcache_kit_kernels.quantize import pallas_kernels  # noqa: E402


@pytest.fixture
def h100():
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        yield


@pytest.mark.parametrize("channels", [1, 576, 1024])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.usefixtures("h100")
# JAX 0.12 announces the end of this backend, but its successor cannot express our kernels yet (no per-lane gather, no
# cumulative sum); the package's upper bound on jax keeps us on a version that has it.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_quantize_kernels_lower_for_an_h100(dtype, channels):
    blocks = jax.ShapeDtypeStruct((4, 37, channels), dtype)
    levels = jax.ShapeDtypeStruct((4,), np.int32)
    forward = jax.jit(lambda x, n: pallas_kernels.quantize(x, n, interpret=False)).trace(blocks, levels)
    assert "triton" in forward.lower(lowering_platforms=("cuda",)).as_text()
    symbols = jax.ShapeDtypeStruct((4, 37, channels), np.uint8)
    maxima, table = jax.ShapeDtypeStruct((4, 37), dtype), jax.ShapeDtypeStruct((4, 128), np.float32)
    backward = jax.jit(lambda s, m, t: pallas_kernels.dequantize(s, m, t, interpret=False)).trace(
        symbols, maxima, table
    )
    assert "triton" in backward.lower(lowering_platforms=("cuda",)).as_text()
