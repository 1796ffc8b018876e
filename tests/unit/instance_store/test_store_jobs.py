"""Compress and decompress: planned at once, carried out in the background, each chunk as a transaction."""

import asyncio
import sys
import types

import numpy as np
import pytest

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin
from lmcache_kit.errors import ConflictError, InvalidRequestError, NotFoundError, UnknownNameError
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.kv import KVTensor, peek_header
from lmcache_kit.plugins import PluginRegistry

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"


class Tampering(CompressionMethod):
    """Says that it is lossless; what it really does is up to the test."""

    device = "test device"
    encoder = staticmethod(lambda kv: bytes(kv.tobytes_view()))
    decoder = staticmethod(lambda kv: kv)

    def encode(self, kv):
        return type(self).encoder(kv)

    def decode(self, payload, layout, num_tokens, version):
        return type(self).decoder(KVTensor.from_bytes(payload, layout, num_tokens))


class Lossy(Tampering):
    pass


@pytest.fixture
def codecs(monkeypatch):
    class Hooks:
        @staticmethod
        @hookimpl
        def lmcache_kit_compression_methods():
            exact = frozenset({"lossless"})
            yield CompressionPlugin(name="tampering", summary="", factory=lambda _: Tampering(), capabilities=exact)
            yield CompressionPlugin(name="lossy", summary="", factory=lambda _: Lossy())

    module = types.ModuleType("tampering_plugin")
    module.lmcache_kit_compression_methods = Hooks.lmcache_kit_compression_methods
    monkeypatch.setitem(sys.modules, "tampering_plugin", module)
    return CodecSet(PluginRegistry(entry_points=[], modules=["tampering_plugin"]))


def same(kv, other):
    return np.array_equal(kv.data.view(np.uint8), other.data.view(np.uint8))


async def finished(store, event_id):
    await store.drain()
    return store.job(event_id)


@pytest.mark.parametrize("location", [CPU, DISK])
async def test_compress_read_back_decompress(lab, tokens, location):
    store = lab.store(lab.tier(location))
    kv = lab.smooth(20)
    raw = (await store.save(tokens, kv)).nbytes
    planned = store.start_compress("c", "zstd", location, tokens)
    assert (planned.status, planned.num_tokens, planned.tokens_done) == ("queued", 20, 0)
    job = await finished(store, "c")
    assert (job.status, job.num_tokens, job.tokens_done, job.error, job.note) == ("done", 20, 20, None, None)
    assert job.bytes_before == raw > job.bytes_after > 0
    assert job.ratio == raw / job.bytes_after
    assert job.device == "cpu"
    stats = store.stats()["tiers"][location]
    assert (stats["used_bytes"], stats["codecs"]) == (job.bytes_after, {"zstd": 3})
    loaded = await store.load_prefix(tokens)
    assert same(loaded.kv, kv)
    assert {hit.codec for hit in loaded.hits} == {"zstd"}
    assert store.lookup(tokens) == {location: 20}
    store.start_decompress("d", "zstd", location, tokens)
    back = await finished(store, "d")
    assert (back.status, back.bytes_before, back.bytes_after, back.tokens_done) == ("done", job.bytes_after, raw, 20)
    assert store.stats()["tiers"][location]["codecs"] == {"naive": 3}
    assert same((await store.load_prefix(tokens)).kv, kv)
    assert len([change for change in lab.changes if change.op == "evict"]) == 0
    lab.check(store)


async def test_what_is_planned_is_what_is_held(lab, tokens):
    store = lab.store(lab.tier(CPU))
    await store.save(tokens, lab.smooth(20))
    await store._writer.remove(0, store.contents(CPU)[1].name(), cause="clear")
    assert store.start_compress("a", "zstd", CPU, tokens).num_tokens == 12, "a hole does not hide what is behind it"
    assert store.start_compress("b", "zstd", CPU, [*tokens[:8], 1, 2, 3]).num_tokens == 8
    assert store.start_compress("c", "zstd", CPU, None).num_tokens == 12
    for event in "abc":
        assert (await finished(store, event)).status == "done"


async def test_refusals_name_the_culprit(lab, tokens):
    store = lab.store(lab.tier(CPU))
    with pytest.raises(NotFoundError, match="LocalCPUBackend holds nothing"):
        store.start_compress("x", "zstd", CPU, None)
    with pytest.raises(NotFoundError, match="LocalCPUBackend holds none of these tokens"):
        store.start_compress("x", "zstd", CPU, tokens)
    with pytest.raises(NotFoundError, match="holds none of these tokens"):
        store.start_decompress("x", "zstd", CPU, tokens)
    await store.save(tokens, lab.smooth(20))
    with pytest.raises(UnknownNameError) as caught:
        store.start_compress("x", "zst", CPU, tokens)
    assert "did you mean 'zstd'" in caught.value.hint
    with pytest.raises(UnknownNameError):
        store.start_decompress("x", "cachegenn", CPU, tokens)
    with pytest.raises(ConflictError, match="no chunk of these tokens in LocalCPUBackend is compressed with 'zstd'"):
        store.start_decompress("x", "zstd", CPU, tokens)
    with pytest.raises(NotFoundError, match="unknown event 'x'"):
        store.job("x")


async def test_an_event_id_is_used_once(lab, tokens):
    store = lab.store(lab.tier(CPU))
    await store.save(tokens, lab.smooth(20))
    store.start_compress("x", "zstd", CPU, tokens)
    with pytest.raises(ConflictError, match="'x' already names a job"):
        store.start_compress("x", "fp8", CPU, tokens)
    assert (await finished(store, "x")).status == "done"
    assert store.stats()["jobs"]["done"] == 1


async def test_decompress_takes_only_what_is_in_the_method(lab, tokens):
    store = lab.store(lab.tier(CPU))
    await store.save(tokens, lab.smooth(20))
    store.start_compress("a", "zstd", CPU, tokens[:8])
    await store.drain()
    assert store.start_decompress("b", "zstd", CPU, tokens).num_tokens == 8
    assert (await finished(store, "b")).tokens_done == 8
    with pytest.raises(ConflictError) as caught:
        store.start_decompress("c", "zstd", CPU, tokens)
    assert "of 3 chunks there are 3 in 'naive'" in caught.value.hint


async def test_a_chunk_may_go_from_one_method_to_another(lab, tokens):
    store = lab.store(lab.tier(CPU))
    kv = lab.smooth(20)
    await store.save(tokens, kv)
    for number, method in enumerate(("zstd", "fp8", "zstd", "naive")):
        store.start_compress(str(number), method, CPU, tokens)
        assert (await finished(store, str(number))).status == "done"
        assert store.stats()["tiers"][CPU]["codecs"] == {method: 3}
    assert same((await store.load_prefix(tokens)).kv, kv), "values of 0, 1 and 2 survive fp8"


async def test_a_result_that_is_larger_is_kept_and_reported(lab, tokens, codecs, monkeypatch):
    monkeypatch.setattr(Lossy, "encoder", staticmethod(lambda kv: bytes(kv.tobytes_view()) * 2))
    monkeypatch.setattr(
        Lossy,
        "decode",
        lambda self, payload, layout, n, version: KVTensor.from_bytes(payload[: len(payload) // 2], layout, n),
    )
    store = lab.store(lab.tier(CPU), codecs=codecs)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    store.start_compress("x", "lossy", CPU, tokens)
    job = await finished(store, "x")
    assert (job.status, job.device) == ("done", "test device")
    assert job.ratio < 1
    assert store.stats()["tiers"][CPU]["used_bytes"] == job.bytes_after
    assert same((await store.load_prefix(tokens)).kv, kv)
    lab.check(store)


def _one_bit(kv):
    data = kv.data.copy()
    data.reshape(-1).view(np.uint8)[0] ^= 1
    return KVTensor(kv.layout, data)


def _raise(kv):
    raise InvalidRequestError("this KV cannot be represented")


WRONG = {
    "a bit flipped by a lossless method": ("tampering", "decoder", _one_bit, "declared lossless"),
    "not finite": ("lossy", "decoder", lambda kv: KVTensor(kv.layout, kv.data * np.float16(np.inf)), "infinite"),
    "another shape": ("lossy", "decoder", lambda kv: kv.tokens(0, 1), "another shape"),
    "encoding fails": ("lossy", "encoder", _raise, "cannot be represented"),
    "payload of the wrong size": ("lossy", "encoder", lambda kv: b"short", "lossy cannot decode"),
    "a bug": ("lossy", "encoder", lambda kv: 1 // 0, "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_chunk_that_fails_its_check_stays_as_it_was(lab, tokens, codecs, monkeypatch, case):
    method, part, function, text = WRONG[case]
    monkeypatch.setattr({"lossy": Lossy, "tampering": Tampering}[method], part, staticmethod(function))
    tier = lab.tier(DISK)
    store = lab.store(tier, codecs=codecs)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    before = dict(tier.backend.objects)
    store.start_compress("x", method, DISK, tokens)
    job = await finished(store, "x")
    assert (job.status, job.tokens_done) == ("failed", 0)
    assert text in job.error
    assert tier.backend.objects == before
    if case != "a bug":
        assert f"chunk {store.contents(DISK)[0].name()}" in job.error
    assert same((await store.load_prefix(tokens)).kv, kv)
    lab.check(store)


async def test_a_lossy_method_need_not_be_exact(lab, tokens, codecs, monkeypatch):
    monkeypatch.setattr(Lossy, "decoder", staticmethod(_one_bit))
    store = lab.store(lab.tier(CPU), codecs=codecs)
    await store.save(tokens, lab.kv(20))
    store.start_compress("x", "lossy", CPU, tokens)
    assert (await finished(store, "x")).status == "done"


async def test_a_job_goes_on_where_the_failed_one_stopped(lab, tokens):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    await store.save(tokens, lab.smooth(20))
    last = store.contents(DISK)[2].name()
    tier.backend.fail = lambda call, name: (call, name) == ("put", last)
    store.start_compress("a", "zstd", DISK, tokens)
    job = await finished(store, "a")
    assert (job.status, job.tokens_done) == ("failed", 16)
    assert last in job.error
    assert store.stats()["tiers"][DISK]["codecs"] == {"zstd": 2, "naive": 1}
    lab.check(store)
    tier.backend.fail = lambda call, name: False
    store.start_compress("b", "zstd", DISK, tokens)
    job = await finished(store, "b")
    assert (job.status, job.tokens_done, job.note) == (
        "done",
        20,
        "2 of 3 chunks already in 'zstd': nothing to do for them",
    )
    lab.check(store)


async def test_a_replacement_that_landed_before_its_error_is_accounted_for(lab, tokens):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    kv = lab.smooth(8)
    await store.save(tokens[:8], kv)
    put = tier.backend.put

    def answer_lost(name, blob):
        put(name, blob)
        raise OSError("the answer was lost")

    tier.backend.put = answer_lost
    store.start_compress("x", "zstd", DISK, tokens[:8])
    assert (await finished(store, "x")).status == "failed"
    tier.backend.put = put
    lab.check(store)
    assert store.stats()["tiers"][DISK]["codecs"] == {"zstd": 1}
    store.start_compress("y", "zstd", DISK, tokens[:8])
    assert (await finished(store, "y")).status == "done"
    assert same((await store.load_prefix(tokens[:8])).kv, kv)


@pytest.mark.parametrize("landed", [True, False])
async def test_a_replacement_that_nobody_can_confirm_is_found_out_by_the_next_read(lab, tokens, landed):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    kv = lab.smooth(8)
    await store.save(tokens[:8], kv)
    put, raw = tier.backend.put, store.stats()["tiers"][DISK]["used_bytes"]

    def answer_lost(name, blob):
        if landed:
            put(name, blob)
        tier.backend.fail = lambda call, name: True
        raise OSError("the connection broke")

    tier.backend.put = answer_lost
    store.start_compress("x", "zstd", DISK, tokens[:8])
    assert (await finished(store, "x")).status == "failed"
    stats = store.stats()["tiers"][DISK]
    assert (stats["codecs"], stats["used_bytes"]) == ({"unknown": 1}, raw)
    tier.backend.put, tier.backend.fail = put, lambda call, name: False
    assert same((await store.load_prefix(tokens[:8])).kv, kv)
    assert store.stats()["tiers"][DISK]["codecs"] == {"zstd" if landed else "naive": 1}
    lab.check(store)


async def test_damaged_source_fails_the_job_by_name(lab, tokens):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    await store.save(tokens[:8], lab.smooth(8))
    (name,) = tier.backend.objects
    tier.backend.objects[name] = tier.backend.objects[name][:-1]
    store.start_compress("x", "zstd", DISK, tokens[:8])
    job = await finished(store, "x")
    assert job.status == "failed"
    assert name in job.error


async def test_decompress_evicts_others_for_room(lab, tokens):
    raw = lab.blob_bytes(None)
    store = lab.store(lab.tier(DISK, 2 * raw))
    await store.save(tokens[:16], lab.smooth(16))
    store.start_compress("a", "zstd", DISK, tokens[:16])
    await store.drain()
    other = [5] * 8
    await store.save(other, lab.kv(8))
    store.start_decompress("b", "zstd", DISK, tokens[:8])
    assert (await finished(store, "b")).status == "done"
    lab.check(store)
    assert store.lookup(tokens)[DISK] == 8, "the least recently used went: the second chunk, then the other prompt"


async def test_decompress_without_room_keeps_the_chunk_compressed(lab, tokens):
    store = lab.store(lab.tier(DISK, 1300))
    kv = lab.smooth(16)
    await store.save(tokens[:16], kv)
    store.start_compress("a", "zstd", DISK, tokens[:16])
    await store.drain()
    other = [5] * 8
    await store.save(other, lab.kv(8))
    store.pin(DISK, other)
    store.pin(DISK, tokens[:16])
    store.start_decompress("b", "zstd", DISK, tokens[:16])
    job = await finished(store, "b")
    assert job.status == "failed"
    assert "has no room" in job.error
    assert "unpin or clear" in job.error
    assert same((await store.load_prefix(tokens[:16])).kv, kv)
    assert store.stats()["tiers"][DISK]["codecs"]["zstd"] >= 1
    lab.check(store)


async def test_loads_and_clears_during_a_job(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(disk)
    kv = lab.smooth(20)
    await store.save(tokens, kv)
    gate = disk.backend.shut("put")
    store.start_compress("x", "zstd", DISK, tokens)
    await disk.backend.called("put")
    assert store.job("x").status == "running"
    assert same((await store.load_prefix(tokens)).kv, kv)
    clearing = asyncio.create_task(store.clear(DISK))
    await asyncio.sleep(0.01)
    assert store.lookup(tokens) == {DISK: 0}
    gate.set()
    assert await clearing == 20
    job = await finished(store, "x")
    assert job.status == "done"
    assert job.note is not None
    assert "left the location before their turn" in job.note
    lab.check(store)


async def test_pinned_chunks_are_compressed_and_stay_pinned(lab, tokens):
    store = lab.store(lab.tier(CPU))
    await store.save(tokens, lab.smooth(20))
    store.pin(CPU, tokens, owner="me")
    store.start_compress("x", "zstd", CPU, tokens)
    assert (await finished(store, "x")).status == "done"
    assert await store.clear(CPU) == 0
    assert store.unpin(CPU, None, owner="me") == 20


async def test_close_finishes_the_jobs(lab, tokens):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    await store.save(tokens, lab.smooth(20))
    store.start_compress("x", "zstd", DISK, tokens)
    await store.close()
    assert store.job("x").status == "done"
    assert {peek_header(blob).codec for blob in tier.backend.objects.values()} == {"zstd"}


async def test_seconds_are_those_of_the_clock(lab, tokens):
    store = lab.store(lab.tier(CPU))
    await store.save(tokens, lab.smooth(20))
    store.start_compress("x", "zstd", CPU, tokens)
    lab.clock.advance(3)
    assert store.job("x").seconds == 0.0, "it has not begun"
    await asyncio.sleep(0)
    lab.clock.advance(2)
    assert store.job("x").seconds == 2.0
    await store.drain()
    lab.clock.advance(9)
    assert store.job("x").seconds == 2.0
