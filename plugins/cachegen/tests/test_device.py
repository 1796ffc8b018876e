"""The programs around the kernels on the device, here in Pallas's interpreter: the same bytes as on the CPU.

What copies between host and device is replaced by numpy; tests/test_gpu.py has the real one.
"""

from __future__ import annotations

import threading
import zlib
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from lmcache_kit_cachegen import compute, device, gpu
from lmcache_kit_cachegen.header import padded
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_cachegen.recent import Recent
from lmcache_kit_cachegen.sections import sections_of
from lmcache_kit_kernels.checks import weighted_sum

from lmcache_kit.errors import BlobError, InvalidRequestError, UnavailableError
from lmcache_kit.kv.layout import KVLayout, KVTensor

jax = pytest.importorskip("jax", reason="the device path needs jax")
torch = pytest.importorskip("torch", reason="tensors on the device are those of PyTorch")

LAYOUT = KVLayout(11, 2, 4, "bfloat16")
TOKENS = 512

# One compilation in the interpreter is seconds, so the cases are few and full.
pytestmark = pytest.mark.skipif(jax.default_backend() == "gpu", reason="test_gpu.py covers this where there is a GPU")


class NumpyLink:
    """Stands for HostLink."""

    def to_jax(self, rows):
        return jax.numpy.asarray(rows)

    def to_host(self, words, size):
        raw = np.array(words).view(np.uint8)
        return SimpleNamespace(wait=lambda size: raw[:size])

    def from_device(self, array):
        return np.asarray(array)

    @contextmanager
    def to_device(self, payloads, room):
        rows = np.full((len(payloads), room), 0xAB, np.uint8)  # what is behind a payload may be anything
        for row, payload in zip(rows, payloads, strict=True):
            row[: payload.size] = payload
        yield SimpleNamespace(wait=lambda: self.to_jax(rows))


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
    return device.Job(directory.header, method.settings_to_read([directory] * len(payloads)))


def read(method, payloads):
    arrays = [np.frombuffer(payload, np.uint8) for payload in payloads]
    return device.read(arrays, job_to_read(method, payloads), NumpyLink())


# Interpreted kernels; half a minute on two idle cores.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("options", [{"quantizer": "lmcache"}, {"level": 2}])
def test_payloads_and_values_are_those_of_the_cpu(options):
    method = CacheGen(CacheGenOptions(**options))
    kvs = [make(0), make(1, wild=True)]  # numbers of different widths in one launch
    wanted = [bytes(payload) for payload in method.encode_many(kvs)]
    job = device.Job(*method.header_and_settings(LAYOUT, TOKENS, 2))
    made = device.payloads(blocks_of(*kvs), job, NumpyLink())
    assert [bytes(payload) for payload in made] == wanted
    values = np.asarray(read(method, wanted))
    back = method.decode_many([memoryview(payload) for payload in wanted], LAYOUT, [TOKENS] * 2, 1)
    assert values.tobytes() == b"".join(kv.data.tobytes() for kv in back)
    check_damage(method, wanted)
    check_forgeries(method, wanted)


def check_damage(method, payloads):
    """Damage to either is found: behind the directory on the device, in it by whoever reads the directory."""
    rng = np.random.default_rng(5)
    job = job_to_read(method, payloads)
    head = job.directory(0).head_bytes
    for which, payload in enumerate(payloads):
        places = [*rng.integers(head, len(payload), 2), *rng.integers(0, head, 4)]
        wrongs = [payload[:-4], payload + bytes(4), payload[:40], b""]
        for place in places:
            damaged = bytearray(payload)
            damaged[place] ^= 1 << int(rng.integers(8))
            wrongs.append(bytes(damaged))
        for wrong in wrongs:
            given = [wrong if place == which else other for place, other in enumerate(payloads)]
            assert device.read([np.frombuffer(each, np.uint8) for each in given], job, NumpyLink()) is None


def check_forgeries(method, payloads):
    """Numbers that no encoder writes, under checks that are right, are found before a kernel trusts them."""
    job = job_to_read(method, payloads)
    payload = payloads[1]
    directory = method.open(memoryview(payload), LAYOUT, TOKENS, 1)[1]
    count = int.from_bytes(payload[place_of(directory, 3, "counts") :][:4], "little")
    forged = [("counts", number) for number in (0, 1, count - 1, count + 2, 2**16, 2**31 + count, 2**32 - 1)]
    forged += [("states", 0), ("states", 2**16 - 1)]
    if directory.header.quantizer == "lmcache":
        forged += [("scales", 0x7F807F80), ("scales", 1), ("centres", 2**32 - 1)]
    else:
        forged += [("scales", 17), ("scales", 255 << 24), ("centres", 0x8000)]
    for name, number in forged:
        wrong = bytearray(payload)
        place = place_of(directory, 3, name)
        wrong[place : place + 4] = number.to_bytes(4, "little")
        entry = directory.entries[3]
        own = [
            wrong[s : s + n] for s, n in ((entry.fixed_start, entry.fixed_bytes), (entry.data_start, entry.data_bytes))
        ]
        check = weighted_sum(np.frombuffer(b"".join(own), "<u2"))
        wrong[48 + 3 * 16 + 4 : 48 + 3 * 16 + 8] = check.to_bytes(4, "little")
        head = job.directory(0).head_bytes
        wrong[head - 4 : head] = zlib.crc32(wrong[: head - 4]).to_bytes(4, "little")
        array = np.frombuffer(wrong, np.uint8)
        variant = job.variant_of(array)
        assert variant is not None
        assert job.directory(variant).describes(array)
        assert device.read([np.frombuffer(payloads[0], np.uint8), array], job, NumpyLink()) is None, (name, number)
        with pytest.raises(BlobError, match=r"^(?!.*check)"):  # what is wrong is not the check
            method.decode(memoryview(wrong), LAYOUT, TOKENS, 1)


def place_of(directory, block, section):
    """First byte of a section of a coded block in its payload."""
    entry = directory.entries[block]
    place = entry.fixed_start
    for name, size in sections_of(directory.header, entry.mode, entry.levels):
        if name == section:
            return place
        place += padded(size)
    raise AssertionError(section)


def test_what_is_not_to_be_coded_is_left_to_the_cpu():
    method = CacheGen(CacheGenOptions(level=2))
    job = device.Job(*method.header_and_settings(LAYOUT, TOKENS, 2))
    odd = make(2)
    odd.data[3, 1, 7] = np.nan
    assert device.payloads(blocks_of(odd, make(3)), job, NumpyLink()) is None
    zero = make(2)
    zero.data[4] = 0
    assert device.payloads(blocks_of(make(3), zero), job, NumpyLink()) is None


def test_short_chunks_and_anchors_are_not_for_the_kernels():
    for options, tokens in (({}, 60), ({"anchor_delta": True}, 256), ({}, 0)):
        method = CacheGen(CacheGenOptions(**options))
        assert not device.Job(*method.header_and_settings(LAYOUT, tokens, 1)).supported


def test_jax_without_a_cpu_is_refused_where_the_cpu_is_asked_for(monkeypatch):
    def missing(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", missing)
    with pytest.raises(UnavailableError, match="Unknown backend cpu"):
        CacheGen(CacheGenOptions(backend="xla"))


def test_launches_cover_all_chunks_with_few_programs():
    for count in range(200):
        for size, elements in ((1, 1 << 27), (1 << 24, 1 << 27), (1 << 28, 1 << 27), (0, 1), (3, 40)):
            found = list(device.launches(count, size, elements))
            assert [place for some in found for place in range(some.start, some.stop)] == list(range(count))
            for some in found:
                length = some.stop - some.start
                assert length & (length - 1) == 0
                assert length <= 64
                assert length == 1 or length * size <= elements


def test_more_than_32_bits_can_count_is_not_for_the_kernels():
    large = KVLayout(64, 8, 128, "bfloat16")
    method = CacheGen(CacheGenOptions())
    assert device.Job(*method.header_and_settings(large, 8192, 1)).supported
    assert not device.Job(*method.header_and_settings(large, 8192, 2)).supported
    assert not device.Job(*method.header_and_settings(large, 32768, 1)).supported


def test_payloads_too_large_for_one_launch_are_left_to_others(monkeypatch):
    method = CacheGen(CacheGenOptions())
    payload = method.encode(make(0))
    monkeypatch.setattr(device, "_MAX_BYTES", len(payload))
    link = NumpyLink()
    link.to_device = lambda *_: pytest.fail("nothing may be copied")
    job = job_to_read(method, [payload])
    assert device.read([np.frombuffer(payload, np.uint8)], job, link) is None


def test_what_was_used_last_is_kept():
    recent = Recent(2)
    first = recent.keep("a", object())
    assert recent.keep("a", object()) is first
    recent.keep("b", object())
    assert recent.get("a") is first
    recent.keep("c", object())
    assert recent.get("b") is None
    assert recent.get("a") is first


def test_what_was_used_last_is_for_several_threads():
    recent = Recent(8)

    def work(seed):
        for key in np.random.default_rng(seed).integers(0, 32, 2000).tolist():
            assert recent.get(key) in (None, key)
            assert recent.keep(key, key) == key

    wrong = []

    def guarded(seed):
        try:
            work(seed)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(recent.get(key) is not None for key in range(32)) <= 8


def test_xla_runs_on_the_cpu_where_no_gpu_is_asked_for(monkeypatch):
    from lmcache_kit_kernels.blocks import reference, xla

    seen = {}

    def recorded(name):
        def call(*args):
            seen[name] = jax.config.jax_default_device.platform
            return getattr(reference, name)(*args)

        return call

    for name in ("encode", "decode", "quantize"):
        monkeypatch.setattr(xla, name, recorded(name))
    options = CacheGenOptions(backend="xla")
    method = CacheGen(options)
    kv = KVTensor(LAYOUT, make(0).data[:, :, :16].copy())
    payload = method.encode(kv)
    back = method.decode(memoryview(payload), LAYOUT, 16, 1)
    assert back.data.tobytes() == CacheGen(CacheGenOptions()).decode(memoryview(payload), LAYOUT, 16, 1).data.tobytes()
    method.fit([kv])
    assert seen == {"encode": "cpu", "decode": "cpu", "quantize": "cpu"}
    assert jax.config.jax_default_device is None


class TorchLink(NumpyLink):
    """Stands for HostLink with tensors of PyTorch on the CPU."""

    def __init__(self, index):
        self.device = torch.device("cpu")

    def holds(self, tensor):
        return tensor.device == self.device

    def to_jax(self, rows):
        return jax.numpy.asarray(rows if isinstance(rows, np.ndarray) else self.array(rows))

    def tensor(self, array):
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)

    def array(self, tensor):
        return tensor.contiguous().view(torch.int16).numpy().view(LAYOUT.np_dtype)

    def from_device(self, array):
        return self.tensor(np.asarray(array))

    def stack(self, tensors):
        return torch.stack(list(tensors))


@pytest.fixture
def on_device(monkeypatch):
    monkeypatch.setattr(gpu, "HostLink", TorchLink)
    monkeypatch.setattr(compute, "choose", lambda options: compute.Compute("numba", "gpu", 1 << 27))
    method = gpu.GpuCacheGen(CacheGenOptions(level=2))
    monkeypatch.undo()
    return method


def test_batches_of_all_lengths_are_those_of_the_cpu(on_device):
    cpu = CacheGen(CacheGenOptions(level=2))
    short = KVTensor(LAYOUT, make(2).data[:, :, :40].copy())
    kvs = [make(0, wild=True), short, make(1, wild=True), KVTensor(LAYOUT, short.data[:, :, :0].copy())]
    tokens = [kv.num_tokens for kv in kvs]
    wanted = [bytes(payload) for payload in cpu.encode_many(kvs)]
    assert [bytes(payload) for payload in on_device.encode_many(kvs)] == wanted
    assert [bytes(on_device.encode(kvs[place])) for place in (1, 3)] == [wanted[1], wanted[3]]
    views = [memoryview(payload) for payload in wanted]
    values = [kv.data.tobytes() for kv in cpu.decode_many(views, LAYOUT, tokens, 1)]
    assert [kv.data.tobytes() for kv in on_device.decode_many(views, LAYOUT, tokens, 1)] == values
    for place in (1, 3):
        assert on_device.decode(views[place], LAYOUT, tokens[place], 1).data.tobytes() == values[place]

    # Tensors that are not contiguous, and that know of gradients.
    both = torch.stack([on_device.device_tensor(kvs[place]) for place in (0, 2)])
    odd = both.transpose(3, 4).contiguous().transpose(3, 4).requires_grad_()
    assert [bytes(payload) for payload in on_device.encode_tensors(odd)] == [wanted[0], wanted[2]]
    short = on_device.device_tensor(kvs[1]).requires_grad_()
    assert [bytes(payload) for payload in on_device.encode_tensors(short)] == [wanted[1]]
    assert bytes(on_device.encode_tensor(short)) == wanted[1]
    back = on_device.decode_tensor(views[1], LAYOUT, tokens[1], 1)
    assert back.shape == short.shape
    assert on_device.decode_tensors([views[1]] * 2, LAYOUT, tokens[1], 1).shape == (2, *short.shape)


def test_nothing_and_what_is_elsewhere(on_device):
    assert on_device.encode_many([]) == []
    assert on_device.decode_many([], LAYOUT, [], 1) == []
    tensor = on_device.device_tensor(make(0))
    assert on_device.encode_tensors(tensor[None][:0]) == []
    for refused in (lambda: on_device.hand_over(tensor[None][:0]), lambda: on_device.decode_tensors([], LAYOUT, 1, 1)):
        with pytest.raises(InvalidRequestError):
            refused()
    for wrong in (tensor[0], tensor.to("meta")):
        with pytest.raises(InvalidRequestError, match="CUDA tensors"):
            on_device.encode_tensors(wrong)
    with pytest.raises(ValueError, match="1 payloads and 2"):
        on_device.decode_many([memoryview(b"")], LAYOUT, [1, 2], 1)
    for damaged in (b"", bytes(40), bytes(4000)):
        with pytest.raises(BlobError):
            on_device.decode(memoryview(damaged), LAYOUT, TOKENS, 1)
