"""Measuring, with methods whose every call is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lmcache_kit.codec_tools import Choice, measure_method, random_kv
from lmcache_kit.codec_tools.timing import LEAST_CALLS, median_seconds
from lmcache_kit.contracts import CompressionMethod, CompressionPlugin, NoOptions
from lmcache_kit.errors import ConfigError, LMCacheKitError, PluginError
from lmcache_kit.kv import KVLayout, KVTensor

KV = random_kv(KVLayout(2, 2, 5, "bfloat16"), 3, seed=0)


class Plain(CompressionMethod):
    """Bytes as they are, and a note of every call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def encode(self, kv: KVTensor) -> memoryview:
        self.calls.append("encode")
        return kv.tobytes_view()

    def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        self.calls.append("decode")
        return KVTensor.from_bytes(payload, layout, num_tokens)


@dataclass
class OnDevice:
    """Something that stands for memory of a device."""

    kv: KVTensor


class Gpu(Plain):
    """The same on a device, with the calls that such methods have."""

    device = "gpu:0"
    device_name = "Test GPU"

    def device_tensor(self, kv: KVTensor) -> OnDevice:
        self.calls.append("device_tensor")
        return OnDevice(kv)

    def encode_device(self, tensor: OnDevice) -> tuple[str, KVTensor]:
        self.calls.append("encode_device")
        return "buffers", tensor.kv

    def decode_device(self, buffers: tuple[str, KVTensor]) -> OnDevice:
        assert buffers[0] == "buffers"
        self.calls.append("decode_device")
        return OnDevice(buffers[1])

    def encode_tensor(self, tensor: OnDevice) -> memoryview:
        self.calls.append("encode_tensor")
        return tensor.kv.tobytes_view()

    def decode_tensor(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> OnDevice:
        self.calls.append("decode_tensor")
        return OnDevice(KVTensor.from_bytes(payload, layout, num_tokens))


def choice(factory: Callable[[Any], CompressionMethod], device: str | None = None) -> Choice:
    return Choice(CompressionPlugin(name="fake", summary="", factory=factory), NoOptions(), {}, device)


def test_on_the_cpu_both_pairs_of_speeds_are_one() -> None:
    method = Plain()
    result = measure_method(choice(lambda _: method), method, KV, 0)
    assert set(method.calls) == {"encode", "decode"}
    assert method.calls.count("encode") == 1 + LEAST_CALLS
    assert result.to_bytes_gbps == result.encode_gbps > 0
    assert result.from_bytes_gbps == result.decode_gbps > 0
    assert (result.raw_bytes, result.encoded_bytes, result.ratio, result.bits_per_element) == (240, 240, 1, 16)
    assert (result.nmse, result.max_abs_error, result.non_finite_mismatches) == (0, 0, 0)
    assert (result.method, result.shape, result.dtype) == ("fake", (2, 2, 3, 2, 5), "bfloat16")
    assert result.first_encode_seconds > 0
    assert result.first_decode_seconds > 0


def test_on_a_device_each_speed_has_its_call() -> None:
    method = Gpu()
    result = measure_method(choice(lambda _: method), method, KV, 0)
    assert method.calls.count("device_tensor") == 1
    for call in ("encode_device", "decode_device", "encode_tensor", "decode_tensor"):
        assert method.calls.count(call) == 1 + LEAST_CALLS
    assert "encode" not in method.calls
    assert method.calls.count("decode") == 1, "for the error"
    assert result.device == "gpu:0"
    assert min(result.encode_gbps, result.decode_gbps, result.to_bytes_gbps, result.from_bytes_gbps) > 0


def test_a_device_without_such_calls_is_measured_from_the_host() -> None:
    method = Plain()
    method.device = "gpu:0"
    result = measure_method(choice(lambda _: method), method, KV, 0)
    assert result.device == "gpu:0"
    assert result.to_bytes_gbps == result.encode_gbps


def test_a_method_with_such_calls_on_the_cpu_is_measured_by_its_contract() -> None:
    method = Gpu()
    method.device = "cpu"
    measure_method(choice(lambda _: method), method, KV, 0)
    assert set(method.calls) == {"encode", "decode"}


def test_speeds_are_those_of_the_slow_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that only the method moves: 2 s to encode, 4 s to decode.
    now = [0.0]
    monkeypatch.setattr("lmcache_kit.codec_tools.timing.time.perf_counter", lambda: now[0])

    class Slow(Plain):
        def encode(self, kv: KVTensor) -> memoryview:
            now[0] += 2
            return super().encode(kv)

        def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
            now[0] += 4
            return super().decode(payload, layout, num_tokens, version)

    method = Slow()
    result = measure_method(choice(lambda _: method), method, KV, 9)
    assert result.encode_gbps == pytest.approx(240e-9 / 2)
    assert result.decode_gbps == pytest.approx(240e-9 / 4)
    assert (result.first_encode_seconds, result.first_decode_seconds) == (2, 4)
    assert method.calls.count("encode") == 1 + 5, "five calls of two seconds fill nine seconds"


def test_median_seconds_calls_thrice_at_least() -> None:
    calls: list[int] = []
    assert median_seconds(lambda: calls.append(1), 0) >= 0
    assert len(calls) == LEAST_CALLS == 3


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (1, 1, 3, 1, 1), (2, 2, 7, 3, 5)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sizes_that_are_no_multiple_of_anything(shape: tuple[int, ...], dtype: str) -> None:
    layers, planes, tokens, heads, dim = shape
    kv = random_kv(KVLayout(layers, heads, dim, dtype, planes), tokens, seed=0)
    method = Plain()
    assert measure_method(choice(lambda _: method), method, kv, 0).shape == shape


def test_nothing_is_no_payload() -> None:
    class Nothing(Plain):
        def encode(self, kv: KVTensor) -> memoryview:
            return memoryview(b"")

        def decode(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
            return KVTensor.empty(layout, num_tokens)

    with pytest.raises(LMCacheKitError, match="fake encoded 240 bytes as nothing"):
        measure_method(choice(lambda _: Nothing()), Nothing(), KV, 0)


def test_a_method_on_another_device_is_refused() -> None:
    assert isinstance(choice(lambda _: Plain(), "cpu").make(), Plain)
    assert isinstance(choice(lambda _: Gpu(), "gpu").make(), Gpu)
    with pytest.raises(ConfigError, match="fake runs on cpu, not on device 'gpu'"):
        choice(lambda _: Plain(), "gpu").make()
    with pytest.raises(ConfigError, match="fake runs on gpu:0, not on device 'cpu'"):
        choice(lambda _: Gpu(), "cpu").make()


def test_a_library_that_is_missing_is_told_in_one_line() -> None:
    def factory(_: object) -> CompressionMethod:
        raise ModuleNotFoundError("No module named\n 'numpi'")

    with pytest.raises(PluginError, match="fake cannot be made: ModuleNotFoundError: No module named 'numpi'"):
        choice(factory).make()
