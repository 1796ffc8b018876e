"""The programs around the kernels on the device, here in Pallas's interpreter: the same bytes as on the CPU.

What copies between host and device is replaced by numpy; tests/test_gpu.py has the real one.
"""

from __future__ import annotations

import numpy as np
import pytest
from lmcache_kit_cachegen import device
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions

from lmcache_kit.kv.layout import KVLayout, KVTensor

jax = pytest.importorskip("jax", reason="the device path needs jax")

LAYOUT = KVLayout(11, 2, 4, "bfloat16")
TOKENS = 512

# One compilation in the interpreter is seconds, so the cases are few and full.
pytestmark = pytest.mark.skipif(jax.default_backend() == "gpu", reason="test_gpu.py covers this where there is a GPU")


class NumpyLink:
    """Stands for HostLink."""

    def to_jax(self, rows):
        return jax.numpy.asarray(rows)

    def to_host(self, words, payloads):
        raw = np.asarray(words).view(np.uint8)
        return [np.concatenate([head, raw[first : first + size]]) for head, first, size in payloads]

    def to_device(self, payloads, room):
        rows = np.full((len(payloads), room), 0xAB, np.uint8)  # what is behind a payload may be anything
        for row, payload in zip(rows, payloads, strict=True):
            row[: payload.size] = payload
        return rows


def make(seed, *, wild=False):
    rng = np.random.default_rng(seed)
    shape = LAYOUT.shape(TOKENS)
    data = rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:2], 1, *shape[3:])) / 2)
    data += rng.standard_normal((*shape[:2], 1, *shape[3:]))
    if wild:  # offsets of two bytes, and tokens with exponents
        data[..., 0, 0] += 800
        data[:, :, 5] *= 50
    return KVTensor(LAYOUT, data.astype(LAYOUT.np_dtype))


def blocks_of(*kvs):
    return jax.numpy.asarray(np.concatenate([kv.data.reshape(-1, TOKENS, 8) for kv in kvs]))


def job_to_read(method, payloads):
    _, directory = method.open(memoryview(payloads[0]), LAYOUT, TOKENS, 1)
    job = device.Job(directory.header, method.settings_to_read([directory] * len(payloads)))
    return job, job.headers.index(directory.header)


def read(method, payloads):
    arrays = [np.frombuffer(payload, np.uint8) for payload in payloads]
    return device.read(arrays, *job_to_read(method, payloads), NumpyLink())


@pytest.mark.parametrize(("options", "wild"), [({"quantizer": "lmcache"}, False), ({"level": 2}, True)])
def test_payloads_and_values_are_those_of_the_cpu(options, wild):
    method = CacheGen(CacheGenOptions(**options))
    kvs = [make(0, wild=wild), make(1, wild=wild)]
    wanted = [bytes(payload) for payload in method.encode_many(kvs)]
    job = device.Job(*method.header_and_settings(LAYOUT, TOKENS, 2))
    made = device.payloads(blocks_of(*kvs), job, NumpyLink())
    assert [bytes(payload) for payload in made] == wanted
    values = np.asarray(read(method, wanted))
    back = method.decode_many([memoryview(payload) for payload in wanted], LAYOUT, [TOKENS] * 2, 1)
    assert values.tobytes() == b"".join(kv.data.tobytes() for kv in back)
    if not wild:
        check_damage(method, wanted[0])


def check_damage(method, payload):
    """Damage behind the directory is found on the device; before it, by whoever reads the directory."""
    rng = np.random.default_rng(5)
    job, variant = job_to_read(method, [payload])
    for place in rng.integers(job.directory(variant).head_bytes, len(payload), 6):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << int(rng.integers(8))
        assert device.read([np.frombuffer(damaged, np.uint8)], job, variant, NumpyLink()) is None
    for wrong in (payload[:-4], payload + bytes(4), payload[:40], b""):
        assert device.read([np.frombuffer(wrong, np.uint8)], job, variant, NumpyLink()) is None
    for place in rng.integers(0, job.directory(variant).head_bytes, 6):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << int(rng.integers(8))
        assert job.directory(variant).read(np.frombuffer(damaged, np.uint8)) is None


def test_what_is_not_to_be_coded_is_left_to_the_cpu():
    method = CacheGen(CacheGenOptions(level=2))
    job = device.Job(*method.header_and_settings(LAYOUT, TOKENS, 2))
    odd = make(2)
    odd.data[3, 1, 7] = np.nan
    assert device.payloads(blocks_of(odd, make(3)), job, NumpyLink()) is None
    zero = make(2)
    zero.data[4] = 0
    assert device.payloads(blocks_of(make(3), zero), job, NumpyLink()) is None
    # Chunks whose numbers have different widths do not share a call.
    assert device.payloads(blocks_of(make(3), make(4, wild=True)), job, NumpyLink()) is None


def test_short_chunks_and_anchors_are_not_for_the_kernels():
    for options, tokens in (({}, 60), ({"anchor_delta": True}, 256), ({}, 0)):
        method = CacheGen(CacheGenOptions(**options))
        assert not device.Job(*method.header_and_settings(LAYOUT, tokens, 1)).supported
