"""Strategies give what they say, and reach the corners that they are for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from lmcache_kit.errors import BlobError, ConfigError
from lmcache_kit.faults import FaultState
from lmcache_kit.kv import KVLayout, KVTensor, unpack_blob
from lmcache_kit.testing import strategies
from lmcache_kit.testing.strategies.kv import FINITE_KINDS

# Found is enough: a smallest example is nobody's concern here.
SOME = settings(max_examples=500, database=None, deadline=None, phases=[Phase.generate])
LAYOUT = KVLayout(2, 2, 32, "float32")


def reached(strategy, condition) -> None:
    """An example of ``strategy`` is found that is so."""
    try:
        find(strategy, condition, settings=SOME)
    except NoSuchExample:
        pytest.fail("no such example in 500")


def wide(kv: KVTensor) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return kv.data.astype(np.float64)


@given(strategies.token_lists(vocab_size=7, min_size=2, max_size=9))
def test_token_lists_keep_their_bounds(tokens):
    assert 2 <= len(tokens) <= 9
    assert set(tokens) <= set(range(7))


def test_token_lists_have_runs_and_mixtures():
    reached(strategies.token_lists(), lambda tokens: len(tokens) > 60 and len(set(tokens)) == 1)
    reached(strategies.token_lists(), lambda tokens: len(set(tokens)) > 3)


@given(strategies.prefix_trees(vocab_size=5, block=4, max_prompts=6, max_blocks=3))
def test_prefix_trees_keep_their_bounds(prompts):
    assert 1 <= len(prompts) <= 6
    assert all(prompts)
    assert all(token in range(5) for prompt in prompts for token in prompt)


def shared(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("block", [1, 4])
def test_prefix_trees_share_prefixes_in_every_way(block):
    trees = strategies.prefix_trees(block=block)
    reached(trees, lambda prompts: any(shared(a, b) >= 2 * block for a in prompts for b in prompts if a is not b))
    reached(trees, lambda prompts: len(prompts) > 1 and prompts[0] == prompts[1])
    reached(trees, lambda prompts: len(prompts) > 1 and prompts[1][: len(prompts[0])] == prompts[0] != prompts[1])
    reached(trees, lambda prompts: len(prompts) > 1 and shared(prompts[0], prompts[1]) == 0)
    if block > 1:
        reached(trees, lambda prompts: len(prompts) > 1 and shared(prompts[0], prompts[1]) % block)


@given(strategies.layouts(max_layers=2, max_heads=1, max_dim=3, dtypes=("float16",)))
def test_layouts_keep_their_bounds(layout):
    assert (layout.num_layers, layout.num_kv_heads, layout.head_dim) <= (2, 1, 3)
    assert layout.num_kv_heads == 1
    assert layout.dtype == "float16"


def test_layouts_are_of_every_type_and_width():
    for dtype in ("bfloat16", "float16", "float32"):
        for planes in (1, 2):
            reached(strategies.layouts(), lambda each, d=dtype, p=planes: (each.dtype, each.planes) == (d, p))
    reached(strategies.layouts(), lambda each: each.head_dim % 2 and each.head_dim > 3)
    reached(strategies.layouts(max_dim=128), lambda each: each.head_dim == 128)


@settings(deadline=None)
@given(strategies.kv_tensors(min_tokens=2, max_tokens=5), strategies.finite_kv())
def test_finite_kv_is_finite(kv, bits):
    assert 2 <= kv.num_tokens <= 5
    assert np.isfinite(wide(kv)).all()
    assert np.isfinite(wide(bits)).all()


def test_special_kv_and_any_bits_are_not_always_finite():
    for condition in (np.isnan, np.isposinf, np.isneginf):
        reached(strategies.kv_tensors(special=True), lambda kv, c=condition: c(wide(kv)).any())
        reached(strategies.any_bits(), lambda kv, c=condition: c(wide(kv)).any())
    # A NaN that carries something besides being one.
    whole = KVLayout(1, 1, 4, "float32")
    reached(
        strategies.any_bits(st.just(whole), min_tokens=1),
        lambda kv: len(set(kv.data.view(np.uint32)[np.isnan(kv.data)].tolist())) > 1,
    )


LARGEST = float(np.finfo(np.float32).max)
KINDS = {
    "normal": lambda data: 0.5 < data.std() < 2,
    "outliers": lambda data: np.abs(data).max(axis=(0, 1, 2, 3)).max() > 20 * np.median(np.abs(data)),
    "sinks": lambda data: np.abs(data[:, :, :2]).mean() > 100 * np.abs(data[:, :, 2:]).mean(),
    "constant": lambda data: len(set(data.reshape(-1).tolist())) == 1,
    "zeros": lambda data: not data.any() and len(set(np.signbit(data).reshape(-1).tolist())) == 2,
    "denormals": lambda data: 0 < np.abs(data).max() < float(np.finfo(np.float32).smallest_normal),
    "extremes": lambda data: np.abs(data).max() == LARGEST,
    "mixed": lambda data: np.abs(data[0]).max() > 1e3 * max(np.abs(data[1]).max(), 1e-300),
}


def test_every_kind_of_kv_is_listed():
    assert set(KINDS) == set(FINITE_KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_kv_of_a_kind_is_of_that_kind(kind):
    kinds = FINITE_KINDS if kind == "mixed" else (kind,)
    strategy = strategies.kv_tensors(st.just(LAYOUT), min_tokens=8, max_tokens=9, kinds=kinds)
    reached(strategy, lambda kv: bool(KINDS[kind](kv.data.astype(np.float64))))


@given(strategies.blobs())
def test_blobs_are_whole(blob):
    unpack_blob(blob)


@given(strategies.damaged_blobs())
def test_damaged_blobs_are_refused(blob):
    with pytest.raises(BlobError):
        unpack_blob(blob)


WHOLE = bytes(range(1, 60))
ACCIDENTS = {
    "cut": lambda bad: len(bad) < len(WHOLE) and WHOLE.startswith(bad),
    "extended": lambda bad: len(bad) > len(WHOLE) and bad.startswith(WHOLE),
    "swapped": lambda bad: sorted(bad) == sorted(WHOLE),
    "one bit": lambda bad: sum((a ^ b).bit_count() for a, b in zip(bad, WHOLE, strict=False)) == 1,
    "zeroed": lambda bad: len(bad) == len(WHOLE) and bad.count(0) > 3,
}


@given(st.binary(min_size=1, max_size=40), st.data())
def test_damage_always_changes_something(whole, data):
    assert data.draw(strategies.damaged(whole)) != whole
    assert data.draw(strategies.damaged(whole, boundary=3)) != whole


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_every_accident_happens(accident):
    reached(strategies.damaged(WHOLE), ACCIDENTS[accident])


def test_nothing_cannot_be_damaged():
    with pytest.raises(ValueError, match="nothing to damage"):
        find(strategies.damaged(b""), lambda bad: True)


PLANS = strategies.fault_plans(["a", "b"], locations=["LocalDiskBackend"], after=["serve"])


@settings(deadline=None)
@given(PLANS)
def test_plans_can_be_carried_out(plan):
    for after in (None, "serve"):
        state = FaultState()
        for action in plan.actions(after):
            assert math.isfinite(action.at)
            try:
                state.apply(action)
            except ConfigError as error:
                pytest.fail(error.detail)
    for fault in plan.faults:
        assert 0 <= fault.at <= 10
        assert fault.until is None or fault.until > fault.at
        assert len(set(fault.target)) == len(fault.target) == (2 if fault.kind in ("slow_link", "partition") else 1)
        assert set(fault.target) <= {"a", "b", "controller"}
        assert (fault.location is not None) == (fault.kind == "full_tier")


@pytest.mark.parametrize("kind", ["kill", "restart", "slow_link", "partition", "full_tier"])
def test_plans_have_faults_of_every_kind(kind):
    reached(PLANS, lambda plan: any(fault.kind == kind for fault in plan.faults))


def test_plans_keep_to_what_there_is():
    with pytest.raises(NoSuchExample):
        find(
            strategies.fault_plans(["a"]),
            lambda plan: any(fault.kind in ("slow_link", "full_tier") for fault in plan.faults),
            settings=SOME,
        )
    with pytest.raises(ValueError, match="at least one instance"):
        find(strategies.fault_plans([]), lambda plan: True)
