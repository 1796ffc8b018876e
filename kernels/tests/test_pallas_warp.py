"""What the lanes of a warp do together, and float steps that are not fused, against plain Python.

``pallas`` compiles the helpers on a GPU; ``pallas_interpret`` is their plain jax; ``emulated`` runs what stands around
the PTX of the compiled helpers with jax in place of each instruction.
"""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="these are helpers of Pallas kernels")

import jax.numpy as jnp  # noqa: E402  # after the check for jax
from jax.experimental import pallas as pl  # noqa: E402
from jax.experimental.pallas import triton as plgpu  # noqa: E402
from lmcache_kit_kernels.blocks import pallas_warp  # noqa: E402
from lmcache_kit_kernels.blocks.config import CONFIG  # noqa: E402
from lmcache_kit_kernels.blocks.pallas_encode import over_tokens  # noqa: E402
from lmcache_kit_kernels.blocks.pallas_warp import GROUP_LANES, LANES  # noqa: E402

ROWS = 16  # programs that one test runs


def emulated_asm(code, constraints, dtype, *args):
    """The integer instructions that the helpers use, as the PTX manual has them."""
    x = args[0]
    if "vote.sync.ballot" in code:
        lanes = jnp.arange(LANES, dtype=jnp.uint32) % GROUP_LANES
        ballots = jnp.sum(((x != 0).astype(jnp.uint32) << lanes).reshape(-1, GROUP_LANES), axis=1, dtype=jnp.uint32)
        return jnp.repeat(ballots, GROUP_LANES).astype(dtype)
    if code.startswith("popc.b32"):
        return jax.lax.population_count(x).astype(dtype)
    assert code.startswith("mul.hi.u32")
    (a, b), (c, d) = (((word >> 16), word & 0xFFFF) for word in args)
    middle = ((b * d) >> 16) + ((a * d) & 0xFFFF) + ((b * c) & 0xFFFF)
    return (a * c + (a * d >> 16) + (b * c >> 16) + (middle >> 16)).astype(dtype)


@pytest.fixture(params=["pallas_interpret", "emulated", "pallas"])
def in_warps(request, monkeypatch):
    """``function(*arrays [LANES], interpret=...)`` in a program for each row of arrays ``[ROWS, LANES]``."""
    if request.param == "emulated":
        monkeypatch.setattr(pallas_warp, "_asm", emulated_asm)
    helper = {"interpret": request.param == "pallas_interpret"}

    def run(function, *arrays, dtypes):
        def kernel(*refs):
            place = pl.program_id(0), jnp.arange(LANES)
            results = function(*(plgpu.load(ref.at[place]) for ref in refs[: len(arrays)]), **helper)
            for ref, result in zip(refs[len(arrays) :], results, strict=True):
                plgpu.store(ref.at[place], result)

        results = pl.pallas_call(
            kernel,
            grid=(ROWS,),
            out_shape=[jax.ShapeDtypeStruct((ROWS, LANES), dtype) for dtype in dtypes],
            compiler_params=plgpu.CompilerParams(num_warps=CONFIG.warps),
            interpret=request.param != "pallas",
        )(*arrays)
        return [np.asarray(result) for result in results]

    return run


def test_rank_and_total_count_within_a_warp(in_warps):
    rng = np.random.default_rng(0)
    chosen = (rng.random((ROWS, LANES)) < rng.random((ROWS, 1))).astype(np.int32)
    chosen[0], chosen[1] = 0, 1
    chosen[2] = np.arange(LANES) % GROUP_LANES == GROUP_LANES - 1  # the sign bit of a ballot alone
    ranks, totals = in_warps(
        lambda some, interpret: pallas_warp.rank_and_total(some != 0, interpret=interpret),
        chosen,
        dtypes=[np.int32, np.int32],
    )
    for row in range(ROWS):
        for lane in range(LANES):
            first = lane - lane % GROUP_LANES
            assert ranks[row, lane] == sum(chosen[row, first:lane].tolist())
            assert totals[row, lane] == sum(chosen[row, first : first + GROUP_LANES].tolist())


def test_quotient_is_that_of_integers(in_warps):
    rng = np.random.default_rng(1)
    f = rng.integers(1, 1024, (ROWS, LANES), dtype=np.uint64)
    f[:2] = np.arange(1, 1 + 2 * LANES).reshape(2, LANES)
    f[2] = 1023 - np.arange(LANES)
    x = rng.integers(0, f << 22, dtype=np.uint64)
    quotients = rng.integers(0, 1 << 22, (ROWS // 2, LANES), dtype=np.uint64)
    x[::2] = f[::2] * quotients + rng.choice([0, 1], quotients.shape).astype(np.uint64) * (f[::2] - 1)
    x[:, ::8] = (f[:, ::8] << 22) - 1
    (found,) = in_warps(
        lambda *args, interpret: (pallas_warp.quotient(*args, interpret=interpret),),
        x.astype(np.uint32),
        f.astype(np.uint32),
        (np.uint64(0xFFFFFFFF) // f).astype(np.uint32),
        dtypes=[np.uint32],
    )
    assert found.tolist() == [
        [top // bottom for top, bottom in zip(*row, strict=True)] for row in zip(x.tolist(), f.tolist(), strict=True)
    ]


def test_high_product_with_the_reciprocal_is_the_quotient_or_one_less():
    """``x / f - x * r / 2**32`` is between 0 and ``x / 2**32 < 1``: it grows with x, so the largest x decide."""
    for f in range(1, 1024):
        reciprocal = (2**32 - 1) // f
        for quotient in (0, 1, 2, 2**11, 2**21 - 1, 2**21, 2**22 - 2, 2**22 - 1):
            for rest in (0, f // 2, f - 1):
                x = quotient * f + rest
                estimate = x * reciprocal >> 32
                assert estimate + (x - estimate * f >= f) == quotient


def test_rounding_through_the_low_bits_is_half_to_even(in_warps):
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (ROWS, LANES)) * np.exp2(rng.integers(-30, 22, (ROWS, LANES)))
    x[:4] = rng.integers(-(2**21), 2**21, (4, LANES)) + 0.5
    x[4] = np.arange(LANES) - LANES // 2 + 0.5
    x[5, :6] = 2**22 - 0.5, 0.5 - 2**22, 2**22 - 1, 1 - 2**22, -0.0, np.finfo(np.float32).smallest_subnormal
    x = x.astype(np.float32)
    (found,) = in_warps(lambda some, interpret: (pallas_warp.rounded(some),), x, dtypes=[np.int32])
    assert found.tolist() == [[round(value) for value in row] for row in x.tolist()]
    (back,) = in_warps(lambda some, interpret: (pallas_warp.integers(some),), found, dtypes=[np.float32])
    assert back.tolist() == found.tolist()


# Not emulated: XLA fuses the product with the sum, which is what the instruction is for.
@pytest.mark.parametrize("in_warps", ["pallas_interpret", "pallas"], indirect=True)
def test_products_are_rounded_before_they_are_added_to(in_warps):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, ROWS, LANES)).astype(np.float32)
    addend = -(x * y)  # what is left is the rounding of the product, if that was not rounded

    def remains(x, y, addend, zero, interpret):
        return (pallas_warp.exact_product(x, y, zero, interpret=interpret) + addend,)

    (found,) = in_warps(remains, x, y, addend, np.zeros((ROWS, LANES), np.uint32), dtypes=[np.float32])
    assert not found.any()
    assert (x.astype(np.float64) * y + addend).any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (0, 5), (0, 8), (3, 11), (0, 37)])
def test_every_token_is_taken_once_and_in_order(begin, end, reverse):
    def note(some, carry):
        taken, count = carry
        for t in reversed(some) if reverse else some:
            taken, count = taken.at[count].set(t), count + 1
        return taken, count

    taken, count = over_tokens(begin, end, note, (jnp.full(40, -1), 0), reverse=reverse)
    expected = list(range(begin, end))
    assert taken[: int(count)].tolist() == (expected[::-1] if reverse else expected)
