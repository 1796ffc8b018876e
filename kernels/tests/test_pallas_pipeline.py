"""Blocks that stay on the device: words in even numbers, parts of checks, several chunks in one launch."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from lmcache_kit_kernels import blocks
from lmcache_kit_kernels.blocks import Settings
from lmcache_kit_kernels.checks import weighted_sum

jax = pytest.importorskip("jax", reason="the pipeline is jax")

import jax.numpy as jnp  # noqa: E402  # after the check for jax
from lmcache_kit_kernels.blocks import pallas_pipeline as pipeline  # noqa: E402
from lmcache_kit_kernels.compaction.pallas_kernel import weigh  # noqa: E402

TOKENS, CHANNELS, PER_CHUNK = 5, 40, 2  # small: the interpreter's programs take seconds to compile
BFLOAT16 = ml_dtypes.bfloat16
# Words before the runs of each block of a chunk; a row for each variant.
FIRSTS = np.array([[100, 2**31], [7, 2**32 - 5], [300, 1], [0, 70_000]], np.uint32)


def chunks_of_every_variant():
    """Blocks ``[4 * PER_CHUNK, T, C]``: no wide number, an exponent, an offset beyond 8 bits, both; the third chunk has
    a block of zeros."""
    x = np.random.default_rng(0).standard_normal((4, PER_CHUNK, TOKENS, CHANNELS))
    x[2:, 0, :, 5] += 500
    x[2, 1] = 0
    x[1::2, 1, 3, 7] = 100
    return x.reshape(-1, TOKENS, CHANNELS).astype(BFLOAT16)


CASES = {
    "uniform": (
        chunks_of_every_variant(),
        Settings("uniform", (127,) * 8, ratio=0x4040, refined_tokens=3, refine_bits=2),
        FIRSTS,
        [0, 1, 2, 3],
    ),
    # Its numbers have one width.
    "lmcache": (chunks_of_every_variant()[2:6], Settings("lmcache", (31, 15) * 2), FIRSTS[:1], [0, 0]),
}


@pytest.fixture(scope="module", params=["pallas_interpret", "pallas"])
def interpret(request):
    if request.param == "pallas" and jax.default_backend() != "gpu":
        pytest.skip("compiled Pallas kernels need a GPU; pallas_interpret runs them here")
    return request.param == "pallas_interpret"


@pytest.fixture(scope="module", params=CASES)
def coded(request, interpret):
    """A case, its plan and tables, what the pipeline made of it, and what the reference did."""
    x, options, firsts, variants = CASES[request.param]
    plan, alphabets = pipeline.plan_for(options, TOKENS)
    tables = pipeline.kernel_tables(options.tables, alphabets)
    found = pipeline.encode(jnp.asarray(x), plan, tables, firsts, even=True, interpret=interpret)
    return options, (plan, tables), found, blocks.encode(x, options), (firsts, variants)


def runs_of(expected):
    """Each block's words, with the zero that makes their number even."""
    counts = expected.counts.sum(axis=1, dtype=int)
    runs = np.split(expected.words, np.cumsum(counts)[:-1])
    return [np.pad(run, (0, run.size % 2)) for run in runs]


def test_words_lie_in_even_numbers_and_sums_are_parts_of_checks(coded):
    _, _, found, expected, (firsts, variants) = coded
    runs = runs_of(expected)
    assert any(run.size != count for run, count in zip(runs, expected.counts.sum(axis=1), strict=True))
    words = np.concatenate(runs)
    assert np.asarray(found.words)[: words.size].tolist() == words.tolist()
    assert np.asarray(found.variants).tolist() == variants
    for block, run in enumerate(runs):
        first = firsts[variants[block // PER_CHUNK], block % PER_CHUNK]
        assert int(found.sums[block]) == weighted_sum(run, int(first)), block
    assert expected.usable.all()
    for field in dataclasses.fields(expected):
        if field.name not in ("words", "flags"):
            mine, its = getattr(found, field.name), getattr(expected, field.name)
            assert (mine is None) == (its is None), field.name
            assert its is None or np.asarray(mine).tobytes() == its.tobytes(), field.name


def test_decoding_reads_even_words_and_notices_a_damaged_one(coded, interpret):
    options, program, found, expected, _ = coded
    back, good = pipeline.decode(found, *program, BFLOAT16, even=True, interpret=interpret)
    assert good
    values = blocks.decode(expected, options, BFLOAT16)
    assert np.asarray(back).tobytes() == values.tobytes()
    for block in (0, 1):
        place = sum(run.size for run in runs_of(expected)[:block]) + 3
        damaged = found._replace(words=found.words.at[place].set(found.words[place] ^ 0x8000))
        back, good = pipeline.decode(damaged, *program, BFLOAT16, even=True, interpret=interpret)
        assert not good
        others = [other for other in range(len(values)) if other != block]
        assert np.asarray(back)[others].tobytes() == values[others].tobytes()


def test_runs_may_lie_anywhere(coded, interpret):
    options, program, found, expected, _ = coded
    rng = np.random.default_rng(1)
    counts = expected.counts.astype(int)
    runs = np.split(expected.words, np.cumsum(counts.reshape(-1))[:-1])
    words = rng.integers(0, 2**16, found.words.size, dtype=np.uint16)
    starts = np.zeros(counts.size, np.int32)
    place = 5
    for index in rng.permutation(counts.size):
        starts[index] = place
        words[place : place + runs[index].size] = runs[index]
        place += runs[index].size + int(rng.integers(0, 3))
    assert place <= words.size
    starts = starts.reshape(counts.shape)
    moved = found._replace(words=jnp.asarray(words))
    back, good = pipeline.decode(moved, *program, BFLOAT16, starts=starts, interpret=interpret)
    assert good
    assert np.asarray(back).tobytes() == blocks.decode(expected, options, BFLOAT16).tobytes()
    weights = rng.integers(0, 2**32, counts.shape, dtype=np.uint32)
    sums = np.asarray(weigh(moved.words, expected.counts, starts, weights, interpret=interpret))
    assert sums.reshape(-1).tolist() == [
        weighted_sum(run, int(first)) for run, first in zip(runs, weights.reshape(-1), strict=True)
    ]


def test_what_the_kernels_are_made_for():
    for more, wanted in [({}, True), ({"fold": 4}, True), ({"fold": 8}, False), ({"group": 16}, False)]:
        assert pipeline.supported(Settings("lmcache", (31,), **more)) == wanted
    assert not pipeline.supported(Settings("lmcache", (31,), anchor_group=10))
