"""Profiles: fitting, the file, and payloads that name the profile that they were written with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_cachegen.fitting import fit_profile
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_cachegen.profile import load_profile, parse_profile
from lmcache_kit_kernels.tables import builtin_tables

from lmcache_kit.errors import BlobError, ConfigError, InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor

LAYOUT = KVLayout(2, 4, 32, "bfloat16")
NUMPY = CacheGenOptions(backend="numpy")
SPREADS = np.exp(np.random.default_rng(99).standard_normal((2, 2, 1, 4, 32)) / 2)


def laplace(seed, layout=LAYOUT, tokens=256):
    data = np.random.default_rng(seed).laplace(size=layout.shape(tokens)) * SPREADS
    return KVTensor(layout, data.astype(layout.np_dtype))


PROFILE = fit_profile([laplace(1), laplace(2)], NUMPY, model="heavy tails", fixed_steps=False)
FIXED = fit_profile(iter([laplace(1)]), NUMPY, fixed_steps=True)


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "profile.json"
    place.write_bytes(PROFILE.to_json())
    return str(place)


def with_profile(path, **options):
    return CacheGen(CacheGenOptions(backend="numpy", profile=str(path), **options))


def error(kv, decoded):
    exact = kv.data.astype(np.float64)
    return np.square(decoded.data - exact).sum() / np.square(exact).sum()


@pytest.mark.parametrize("level", range(1, 7))
def test_a_fitted_profile_makes_fresh_data_of_its_kind_smaller(path, level):
    kv = laplace(3)
    fitted, built_in = with_profile(path, level=level), CacheGen(CacheGenOptions(backend="numpy", level=level))
    ours, theirs = fitted.encode(kv), built_in.encode(kv)
    # At levels 1 and 2 most bits are those of the refinement, which no table makes smaller.
    assert len(ours) < (0.998 if level < 3 else 0.993) * len(theirs)
    errors = [
        error(kv, method.decode(memoryview(payload), LAYOUT, 256, 1))
        for method, payload in ((fitted, ours), (built_in, theirs))
    ]
    assert errors[0] < 1.01 * errors[1]


def test_tables_of_a_profile_are_consistent():
    for profile in (PROFILE, FIXED):
        tables = profile.tables[127]
        assert np.all(tables.frequencies.sum(axis=1) == 1024)
        assert np.all(tables.frequencies[31] >= 1)
        for magnitude in range(64):
            reach = np.arange(-magnitude, magnitude + 1)
            assert np.all(tables.frequencies[tables.cover[magnitude] :][:, reach] >= 1)
        assert np.all(np.diff(tables.thresholds.astype(np.int64)) > 0)
        assert tables.fingerprint == profile.fingerprint != bytes(16)
        assert set(profile.tables) == {15, 31, 127}


def test_a_profile_fitted_to_normal_values_is_no_worse_than_the_built_in_tables(tmp_path):
    def normal(seed):
        data = np.random.default_rng(seed).standard_normal(LAYOUT.shape(256)) * SPREADS
        return KVTensor(LAYOUT, data.astype(LAYOUT.np_dtype))

    (tmp_path / "p").write_bytes(fit_profile([normal(1), normal(2)], NUMPY).to_json())
    for level in (3, 6):
        built_in = CacheGen(CacheGenOptions(backend="numpy", level=level))
        assert len(with_profile(tmp_path / "p", level=level).encode(normal(3))) <= len(built_in.encode(normal(3)))


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(["spikes", "constant", "bits", "few"]), seed=st.integers(0, 2**32), level=st.integers(1, 6))
def test_anything_can_be_coded_with_a_profile(tmp_path_factory, kind, seed, level):
    """A profile fitted to something else entirely: values come back as well as without it."""
    place = tmp_path_factory.mktemp("profile") / "p"
    place.write_bytes(PROFILE.to_json())
    rng = np.random.default_rng(seed)
    data = rng.standard_normal(LAYOUT.shape(20))
    if kind == "spikes":
        data[rng.random(data.shape) < 0.02] *= 2000
    elif kind == "constant":
        data[:] = data[:, :, :1]
    elif kind == "few":
        data = np.where(rng.random(data.shape) < 0.01, data, 0)
    kv = KVTensor(LAYOUT, data.astype(LAYOUT.np_dtype))
    if kind == "bits":
        raw = rng.integers(0, 256, LAYOUT.nbytes(20), dtype=np.uint8)
        kv = KVTensor.from_bytes(raw, LAYOUT, 20)
    method = with_profile(place, level=level)
    payload = method.encode(kv)
    decoded = method.decode(memoryview(payload), LAYOUT, 20, 1)
    if kind == "bits":
        assert decoded.data.tobytes() == kv.data.tobytes()
    else:
        built_in = CacheGen(CacheGenOptions(backend="numpy", level=level))
        plain = built_in.decode(memoryview(built_in.encode(kv)), LAYOUT, 20, 1)
        assert error(kv, decoded) <= 1.2 * error(kv, plain) + 1e-9


# --- fixed steps -----------------------------------------------------------------------------------------------------


def test_fixed_steps_are_those_of_the_samples(tmp_path):
    (tmp_path / "p").write_bytes(FIXED.to_json())
    method = with_profile(tmp_path / "p", level=4)

    def inverses(codec, kv):
        payload = codec.encode(kv)
        return [int.from_bytes(payload[50 + 16 * block : 52 + 16 * block], "little") for block in range(4)]

    kv, twice = laplace(1), KVTensor(LAYOUT, laplace(1).data * LAYOUT.np_dtype.type(2))
    measured = CacheGen(CacheGenOptions(backend="numpy", level=4))
    assert inverses(method, kv) == inverses(method, twice)
    assert np.allclose(inverses(method, kv), inverses(measured, kv), atol=1)
    assert min(np.array(inverses(measured, kv)) - inverses(measured, twice)) > 100
    decoded = method.decode(memoryview(method.encode(twice)), LAYOUT, 256, 1)
    assert error(twice, decoded) < 0.01


def test_fixed_steps_need_values_in_every_block():
    kv = laplace(1)
    kv.data[1, 1] = 0
    assert fit_profile([kv], NUMPY).log_variances is None
    with pytest.raises(InvalidRequestError, match="no usable values in any sample"):
        fit_profile([kv], NUMPY, fixed_steps=True)
    assert fit_profile([kv, laplace(2)], NUMPY, fixed_steps=True).log_variances is not None


# --- payloads and their profiles -------------------------------------------------------------------------------------


def test_a_payload_needs_the_profile_it_was_written_with(path, tmp_path):
    (tmp_path / "other").write_bytes(FIXED.to_json())
    kv = laplace(4)
    ours, none, other = with_profile(path), CacheGen(NUMPY), with_profile(tmp_path / "other")
    payload = ours.encode(kv)
    assert payload[32:48] == PROFILE.fingerprint
    for method in (none, other):
        with pytest.raises(BlobError, match=PROFILE.fingerprint.hex()) as refusal:
            method.decode(memoryview(payload), LAYOUT, 256, 1)
        assert "option profile" in refusal.value.hint
    assert ours.decode(memoryview(payload), LAYOUT, 256, 1).num_tokens == 256


def test_what_was_written_without_a_profile_is_read_with_any(path):
    kv, ours = laplace(4), with_profile(path)
    payloads, values = [ours.encode(kv)], [ours.decode(memoryview(ours.encode(kv)), LAYOUT, 256, 1)]
    for options in ({"quantizer": "lmcache"}, {"level": 4}):
        method = CacheGen(CacheGenOptions(backend="numpy", **options))
        payloads.append(method.encode(kv))
        values.append(method.decode(memoryview(payloads[-1]), LAYOUT, 256, 1))
    together = ours.decode_many([memoryview(payload) for payload in payloads], LAYOUT, [256] * 3, 1)
    assert [kv.data.tobytes() for kv in together] == [kv.data.tobytes() for kv in values]


def test_a_profile_is_for_kv_of_its_shape(path):
    method = with_profile(path)
    other = KVLayout(2, 32, 4)
    with pytest.raises(
        InvalidRequestError, match="heavy tails is for 2 layers of 2 planes, 4 KV heads of dimension 32"
    ):
        method.encode(KVTensor.empty(other, 1))
    same = KVLayout(2, 4, 32, "float32")
    method.encode(laplace(1, same))


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(path):
    for profile in (PROFILE, FIXED):
        again = parse_profile(profile.to_json())
        assert again.to_json() == profile.to_json()
        assert again.fingerprint == profile.fingerprint
    assert load_profile(path).model == "heavy tails"
    assert PROFILE.fingerprint != FIXED.fingerprint


def test_the_method_fits_what_the_function_fits():
    assert parse_profile(CacheGen(NUMPY).fit([laplace(1), laplace(2)])).fingerprint == PROFILE.fingerprint


def test_the_model_may_be_renamed():
    document = json.loads(PROFILE.to_json())
    document["model"] = "another name"
    assert parse_profile(json.dumps(document).encode()).fingerprint == PROFILE.fingerprint


def changed(**changes):
    document = json.loads(PROFILE.to_json())
    for name, value in changes.items():
        if value is None:
            del document[name]
        else:
            document[name] = value(document[name]) if callable(value) else value
    return json.dumps(document).encode()


WRONG = {
    "not JSON": b"{",
    "not text": b"\xff\xfe",
    "another document": b'{"format": "something"}',
    "another version": changed(version=2),
    "a key too many": changed(extra=1),
    "a key too few": changed(gains=None),
    "a text for a number": changed(gains=lambda gains: ["1", *gains[1:]]),
    "too few gains": changed(gains=lambda gains: gains[1:]),
    "a gain above 256": changed(gains=lambda gains: [257, *gains[1:]]),
    "a negative gain": changed(gains=lambda gains: [-1, *gains[1:]]),
    "a huge number": changed(gains=lambda gains: [2**70, *gains[1:]]),
    "descending thresholds": changed(thresholds=lambda thresholds: thresholds[::-1]),
    "rows of other lengths": changed(frequencies=lambda rows: [rows[0][1:], *rows[1:]]),
    "a row that sums to more": changed(frequencies=lambda rows: [[rows[0][0] + 1, *rows[0][1:]], *rows[1:]]),
    "a cover that is not": changed(cover=[0] * 64),
    "a cover of no table": changed(cover=lambda cover: [*cover[:-1], 32]),
    "no layers": changed(layout=lambda layout: layout | {"num_layers": 0}),
    "three planes": changed(layout=lambda layout: layout | {"planes": 3}),
    "too few steps": changed(log_variances=[1, 2]),
    "an infinite step": changed(log_variances=[0x7F80] * 4),
    "another fingerprint": changed(fingerprint="00" * 16),
    "another layout than the fingerprint's": changed(layout=lambda layout: layout | {"num_layers": 3}),
    "another gain than the fingerprint's": changed(gains=lambda gains: [gains[0] - 1, *gains[1:]]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, name):
    place = tmp_path / "wrong.json"
    place.write_bytes(WRONG[name])
    with pytest.raises(ConfigError, match=r"wrong\.json") as refusal:
        with_profile(place)
    assert "codec fit" in refusal.value.hint


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "hold no tokens"),
        ([laplace(1, tokens=0)], "hold no tokens"),
        ([KVTensor(LAYOUT, np.zeros(LAYOUT.shape(9), LAYOUT.np_dtype))], "nothing but zeros"),
        ([laplace(1), KVTensor.empty(KVLayout(1, 1, 1), 1)], "must share one layout"),
    ],
)
def test_samples_that_teach_nothing_are_refused(samples, message):
    with pytest.raises(InvalidRequestError, match=message):
        fit_profile(samples, NUMPY)


def test_lmcaches_quantizer_has_no_profiles():
    with pytest.raises(ConfigError, match="quantizer uniform"):
        CacheGen(CacheGenOptions(backend="numpy", quantizer="lmcache")).fit([laplace(1)])


def test_unusable_blocks_are_left_out():
    kv = laplace(1)
    kv.data[0, 0, 3, 0, 0] = np.nan
    profile = fit_profile([kv], NUMPY)
    assert profile.fingerprint != fit_profile([laplace(1)], NUMPY).fingerprint


def test_a_single_channel_is_enough():
    layout = KVLayout(1, 1, 1, planes=1)
    profile = fit_profile([KVTensor(layout, np.ones(layout.shape(1), layout.np_dtype))], NUMPY)
    # What was not seen is as in the built-in tables, roughly.
    middle = profile.tables[127].frequencies[:, 0].astype(int)
    assert np.abs(middle - builtin_tables(127).frequencies[:, 0].astype(int)).max() < 400
