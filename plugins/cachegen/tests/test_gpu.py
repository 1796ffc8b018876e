"""cachegen compiled for a GPU: bytes and values are those of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_cachegen.plugin import lmcache_kit_compression_methods

from lmcache_kit.errors import BlobError, InvalidRequestError, UnavailableError
from lmcache_kit.kv.layout import KVLayout, KVTensor

jax = pytest.importorskip("jax", reason="the GPU path needs jax")
torch = pytest.importorskip("torch", reason="the GPU path needs PyTorch")

HAS_GPU = jax.default_backend() == "gpu" and torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU that both jax and PyTorch see")


def on_gpu(**options):
    (record,) = lmcache_kit_compression_methods()
    return record.factory(CacheGenOptions(device="gpu", **options))


def make(layout, tokens, seed=0, *, wild=False):
    rng = np.random.default_rng(seed)
    shape = layout.shape(tokens)
    data = rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:2], 1, *shape[3:])) / 2)
    data += rng.standard_normal((*shape[:2], 1, *shape[3:]))
    if wild:  # numbers of other widths
        data[..., 0, 0] += 800
        data[:, :, 5] *= 50
    return KVTensor(layout, data.astype(layout.np_dtype))


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
@pytest.mark.parametrize("options", [{"device": "gpu"}, {"backend": "pallas"}, {"device": "gpu", "backend": "xla"}])
def test_a_gpu_that_is_not_there_is_refused(options):
    (record,) = lmcache_kit_compression_methods()
    with pytest.raises(UnavailableError, match="GPU"):
        record.factory(CacheGenOptions(**options))


# A program takes some ten seconds to compile, so the cases are few.
CASES = [
    ({"quantizer": "lmcache"}, KVLayout(12, 8, 128, "bfloat16"), 256, 2),
    ({"level": 4}, KVLayout(12, 8, 128, "bfloat16"), 256, 2),
    ({"level": 1}, KVLayout(3, 1, 576, "float16", 1), 300, 1),
    ({"quantizer": "lmcache"}, KVLayout(2, 4, 64, "float32"), 128, 1),
    ({"level": 4}, KVLayout(2, 4, 64, "bfloat16"), 40, 2),  # on the CPU
]


@needs_gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("options", "layout", "tokens", "count"), CASES, ids=str)
def test_bytes_and_values_are_those_of_the_cpu(options, layout, tokens, count):
    gpu, cpu = on_gpu(**options), CacheGen(CacheGenOptions(**options))
    kvs = [make(layout, tokens, seed, wild=seed == 0) for seed in range(count)]
    wanted = [bytes(payload) for payload in cpu.encode_many(kvs)]
    assert [bytes(payload) for payload in gpu.encode_many(kvs)] == wanted
    views = [memoryview(payload) for payload in wanted]
    values = [kv.data.tobytes() for kv in cpu.decode_many(views, layout, [tokens] * count, 1)]
    assert [kv.data.tobytes() for kv in gpu.decode_many(views, layout, [tokens] * count, 1)] == values
    # Again and again: what is kept from call to call must not show.
    for kv, own, value in [*zip(kvs, wanted, values, strict=True)] * 3:
        tensor = gpu.device_tensor(kv)
        payload = gpu.encode_tensor(tensor)
        assert bytes(payload) == own
        back = gpu.decode_tensor(memoryview(payload), layout, tokens, 1)
        assert back.is_cuda
        assert back.shape == tensor.shape
        assert back.contiguous().view(torch.uint8).cpu().numpy().tobytes() == value


@needs_gpu
def test_buffers_on_the_device_decode_to_what_the_payload_does():
    gpu, layout = on_gpu(), KVLayout(12, 8, 128, "bfloat16")
    kv = make(layout, 256)
    tensor = gpu.device_tensor(kv)
    values = gpu.decode_device(gpu.encode_device(tensor)).reshape(tensor.shape)
    payload = gpu.encode_tensor(tensor)
    assert torch.equal(values.view(torch.int16), gpu.decode_tensor(payload, layout, 256, 1).view(torch.int16))
    with pytest.raises(InvalidRequestError, match="no kernels"):
        gpu.encode_device(gpu.device_tensor(make(layout, 20)))
    with pytest.raises(InvalidRequestError, match="CUDA tensors"):
        gpu.encode_device(tensor.cpu())


@needs_gpu
def test_odd_blocks_come_back_exactly_and_damage_is_an_error():
    gpu, layout = on_gpu(), KVLayout(12, 8, 128, "bfloat16")
    kv = make(layout, 256)
    kv.data[0, 0, 3, 1] = np.nan
    kv.data[1, 1] = 0
    payload = bytes(gpu.encode(kv))
    assert payload == bytes(CacheGen(CacheGenOptions()).encode(kv))
    back = gpu.decode(memoryview(payload), layout, 256, 1)
    assert back.data[0, 0].tobytes() == kv.data[0, 0].tobytes()
    payload = bytes(gpu.encode(make(layout, 256)))
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(payload), 12):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(BlobError):
            gpu.decode(memoryview(bytes(damaged)), layout, 256, 1)
    with pytest.raises(BlobError):
        gpu.decode(memoryview(payload[:-4]), layout, 256, 1)
