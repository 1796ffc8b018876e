"""``plugins check`` finds what is wrong with broken plugins, and says in words why it skips."""

from __future__ import annotations

import dataclasses
import socket
import tempfile

import numpy as np
import pytest

from lmcache_kit.builtin.compression.naive import NaiveMethod
from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.builtin.placement.broadcast import Broadcast
from lmcache_kit.builtin.storage.memory import MemoryBackend
from lmcache_kit.builtin.storage.records import RECORDS
from lmcache_kit.builtin.transports.inproc import InprocTransport
from lmcache_kit.builtin.transports.options import InprocOptions
from lmcache_kit.contracts import (
    CompressionPlugin,
    EnginePlugin,
    EvictionPlugin,
    NoOptions,
    Options,
    PlacementPlugin,
    Promotion,
    Reporter,
    ReporterPlugin,
    StoragePlugin,
    TraceFormat,
    TracePlugin,
    TraceReader,
    TransportPlugin,
)
from lmcache_kit.errors import NotFoundError, UnavailableError
from lmcache_kit.kv import KVTensor
from lmcache_kit.testing.checks import CheckResult, check_plugin


def failed(results: list[CheckResult]) -> dict[str, str]:
    return {result.check: result.detail for result in results if result.outcome == "failed"}


def storage(backend: type, **facts) -> StoragePlugin:
    return StoragePlugin(name="x", summary="x", location="X", factory=lambda options, context: backend(), **facts)


class Forgets(MemoryBackend):
    def put(self, name, blob):
        pass


class KeepsBuffer(MemoryBackend):
    def put(self, name, blob):
        self._objects[name] = blob


class Truncates(MemoryBackend):
    def put(self, name, blob):
        super().put(name, bytes(blob)[:1000])


class DeletesNothing(MemoryBackend):
    def delete(self, name):
        return name in self._objects


class ListsTwice(MemoryBackend):
    def entries(self):
        return iter([*super().entries(), *super().entries()])


class CloseFails(MemoryBackend):
    def close(self):
        raise RuntimeError("stuck")


class ShortNames(MemoryBackend):
    def put(self, name, blob):
        super().put(name[:64], blob)


class WrongOrder(MemoryBackend):
    def get_many(self, names):
        return [self.get(name) for name in sorted(names)]


@pytest.mark.parametrize(
    ("record", "check"),
    [
        (storage(Forgets), "put and get"),
        (storage(KeepsBuffer), "keeps its own bytes"),
        (storage(Truncates), "large objects"),
        (storage(DeletesNothing), "delete"),
        (storage(ListsTwice), "entries"),
        (storage(CloseFails), "made and closed"),
        (storage(ShortNames), "names"),
        (storage(WrongOrder), "batch reads"),
        (storage(MemoryBackend, capabilities=frozenset({"persistent"})), "persistent"),
        (storage(MemoryBackend, capabilities=frozenset({"shared"})), "shared"),
        (storage(dict), "made and reached"),
    ],
)
def test_broken_storage(record, check):
    assert check in failed(check_plugin(record))


def compression(method: type, *capabilities: str) -> CompressionPlugin:
    return CompressionPlugin(
        name="x", summary="x", factory=lambda options: method(), capabilities=frozenset(capabilities)
    )


class Lossy(NaiveMethod):
    def encode(self, kv):
        data = kv.data.copy()
        data[..., 0] = 0
        return KVTensor(kv.layout, data).tobytes_view()


class Useless(NaiveMethod):
    def decode(self, payload, layout, num_tokens, version):
        super().decode(payload, layout, num_tokens, version)
        return KVTensor(layout, np.zeros(layout.shape(num_tokens), layout.np_dtype))

    decode_layers = None


class Random(NaiveMethod):
    def encode(self, kv):
        return bytes(super().encode(kv)) + np.random.default_rng().bytes(8)

    def decode(self, payload, layout, num_tokens, version):
        return super().decode(payload[:-8], layout, num_tokens, version)


class Trusting(NaiveMethod):
    def decode(self, payload, layout, num_tokens, version):
        return KVTensor.from_bytes(payload, layout, num_tokens)  # raises InvalidRequestError, not BlobError


class ChangesInput(NaiveMethod):
    def encode(self, kv):
        payload = bytes(super().encode(kv))
        kv.data[...] = 0
        return payload


class SwapsLayers(NaiveMethod):
    def decode_layers(self, payload, layout, num_tokens, version):
        return reversed(list(super().decode_layers(payload, layout, num_tokens, version)))


@pytest.mark.parametrize(
    ("record", "check"),
    [
        (compression(Lossy, "lossless"), "round trip bfloat16 4x2xTx2x64"),
        (compression(Lossy, "lossless"), "NaN, infinities, subnormals"),
        (compression(Useless), "round trip float16 4x2xTx2x64"),
        (compression(Random, "deterministic"), "deterministic"),
        (compression(Trusting), "truncated payloads"),
        (compression(Trusting), "unknown version"),
        (compression(ChangesInput), "round trip float32 4x2xTx2x64"),
        (compression(SwapsLayers), "layer by layer"),
        (compression(list), "made"),
    ],
)
def test_broken_compression(record, check):
    assert check in failed(check_plugin(record))


class Repeats(LRU):
    def victims(self):
        return iter([*super().victims(), *super().victims()])


class KeepsRemoved(LRU):
    def remove(self, key, *, evicted):
        pass


class Shuffles(LRU):
    def victims(self):
        for key in list(self._keys)[:1]:
            self._keys.move_to_end(key)
        return super().victims()


@pytest.mark.parametrize("policy", [Repeats, KeepsRemoved, Shuffles, dict])
def test_broken_eviction(policy):
    record = EvictionPlugin(name="x", summary="x", factory=lambda options, capacity: policy())
    assert "bounded tier" in failed(check_plugin(record))


class OutOfRange(Broadcast):
    def on_hit(self, tiers, tier, nbytes):
        return Promotion(target=len(tiers), keep_source=True)


class Alternates(Broadcast):
    calls = 0

    def on_store(self, tiers, nbytes):
        self.calls += 1
        return (self.calls % len(tiers),)


@pytest.mark.parametrize(("policy", "check"), [(OutOfRange, "hits"), (Alternates, "stores"), (dict, "made")])
def test_broken_placement(policy, check):
    record = PlacementPlugin(name="x", summary="x", factory=lambda options: policy())
    assert check in failed(check_plugin(record))


class Deaf(InprocTransport):
    async def listen(self, address, handler):
        async def answer(frames):
            return [b"?"]

        return await super().listen(address, answer)


def test_broken_transport():
    record = TransportPlugin(
        name="x", summary="x", scheme="inproc", options=InprocOptions, factory=lambda options: Deaf(options)
    )
    assert "frames there and back" in failed(check_plugin(record))


class Grows(Reporter):
    def render(self, report):
        report["results"].append({})
        return str(len(report["results"]))


class Swallows(TraceReader):
    format = TraceFormat(block_size=0, tail="floor", id_scope="global", chained=False, time_unit=1.0)

    def read(self, path):
        return iter(())


def test_broken_reporter_and_trace_reader():
    reporter = ReporterPlugin(name="x", summary="x", factory=lambda options: Grows())
    assert "renders a report" in failed(check_plugin(reporter))
    reader = TracePlugin(name="x", summary="x", factory=lambda options: Swallows())
    assert "refuses what it cannot read" in failed(check_plugin(reader))
    wrong = ReporterPlugin(name="x", summary="x", factory=lambda options: "a text")
    assert "not a Reporter" in failed(check_plugin(wrong))["made"]


def test_a_factory_that_raises_anything_is_a_line_not_a_crash():
    def broken(*arguments):
        raise ZeroDivisionError("oops")

    records = [
        StoragePlugin(name="x", summary="x", location="X", factory=broken),
        CompressionPlugin(name="x", summary="x", factory=broken),
        TransportPlugin(name="x", summary="x", scheme="x", factory=broken),
        EnginePlugin(name="x", summary="x", factory=broken),
        EvictionPlugin(name="x", summary="x", factory=broken),
        PlacementPlugin(name="x", summary="x", factory=broken),
        ReporterPlugin(name="x", summary="x", factory=broken),
    ]
    for record in records:
        details = failed(check_plugin(record))
        assert any("ZeroDivisionError: oops" in detail for detail in details.values()), record.kind


def test_unusable_here_is_skipped_with_the_reason():
    class Unreachable(MemoryBackend):
        def size(self, name):
            raise UnavailableError("the server at h:1 is not there", hint="start it")

    results = check_plugin(storage(Unreachable))
    assert [result.outcome for result in results] == ["passed", "skipped"]
    assert "the server at h:1 is not there (start it)" in results[1].detail

    def no_model(options, model):
        raise NotFoundError(f"no model {model!r}")

    results = check_plugin(EnginePlugin(name="x", summary="x", factory=no_model))
    assert [result.outcome for result in results] == ["passed", "skipped"]
    assert "no model" in results[1].detail


class NeedsUrl(Options, frozen=True):
    url: str
    tries: int = 1


def test_required_options_are_named_and_may_be_given():
    record = storage(MemoryBackend, options=NeedsUrl)
    results = check_plugin(record)
    assert [result.outcome for result in results] == ["passed", "skipped"]
    assert "url" in results[1].detail
    assert "tries" not in results[1].detail
    assert not failed(check_plugin(record, options={"url": "there"}))
    assert "options" in failed(check_plugin(record, options={"url": 5}))
    assert "options" in failed(check_plugin(record, options={"url": "there", "tires": 2}))


@pytest.mark.parametrize("change", [{"name": "Not-OK"}, {"summary": "two\nlines"}, {"summary": ""}, {"options": dict}])
def test_a_malformed_record(change):
    assert "record" in failed(check_plugin(dataclasses.replace(storage(MemoryBackend), **change)))


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for record in RECORDS:
        assert not failed(check_plugin(record))
    assert list(tmp_path.iterdir()) == []


def test_objects_of_others_survive_a_check(tmp_path):
    shared = MemoryBackend()
    shared.close = lambda: None
    shared.put("m.1", b"theirs")
    shared.put(".", b"also theirs")
    record = StoragePlugin(
        name="x", summary="x", location="X", factory=lambda options, context: shared, capabilities=frozenset({"shared"})
    )
    assert not failed(check_plugin(record))
    assert dict(shared.entries()) == {"m.1": 6, ".": 11}


def test_valkey_without_a_server_is_skipped():
    plugin = pytest.importorskip("lmcache_kit_valkey", reason="the valkey plugin is not installed")
    (record,) = plugin.lmcache_kit_storage_backends()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        results = check_plugin(record, options={"url": f"valkey://127.0.0.1:{taken.getsockname()[1]}"})
    assert [result.outcome for result in results] == ["passed", "skipped"]
    assert "cannot be used" in results[1].detail


def test_default_options_are_used():
    seen = []
    record = EvictionPlugin(name="x", summary="x", factory=lambda options, capacity: (seen.append(options), LRU())[1])
    assert not failed(check_plugin(record))
    assert all(type(options) is NoOptions for options in seen)
