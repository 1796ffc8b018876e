"""Compress and decompress with a method that takes several chunks in one call: the same as one by one."""

import asyncio
import sys
import threading
import types

import numpy as np
import pytest

from lmcache_kit.contracts.compression import CompressionMethod, SupportsBatches
from lmcache_kit.contracts.records import CompressionPlugin
from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit.instance.store import recoding
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.kv import KVTensor
from lmcache_kit.plugins import PluginRegistry

DISK = "LocalDiskBackend"


class Halves(CompressionMethod):
    """Keeps the upper byte of every number; counts what it was given together."""

    def __init__(self):
        self.encoded, self.decoded = [], []
        self.refuse = lambda kv: False
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def encode(self, kv):
        if self.refuse(kv):
            raise InvalidRequestError("this KV cannot be represented")
        return kv.data.view(np.uint8)[..., 1::2].tobytes()

    def decode(self, payload, layout, num_tokens, version):
        half = np.frombuffer(payload, np.uint8)
        if half.size * 2 != layout.nbytes(num_tokens):
            raise BlobError("wrong size")
        return KVTensor.from_bytes(np.stack([np.zeros_like(half), half], axis=-1), layout, num_tokens)

    def encode_many(self, kvs):
        self.entered.set()
        assert self.open.wait(60)
        self.encoded.append([kv.num_tokens for kv in kvs])
        return [self.encode(kv) for kv in kvs]

    def decode_many(self, payloads, layout, num_tokens, version):
        self.decoded.append(list(num_tokens))
        return [
            self.decode(payload, layout, count, version) for payload, count in zip(payloads, num_tokens, strict=True)
        ]


@pytest.fixture
def halves():
    return Halves()


@pytest.fixture
def codecs(monkeypatch, halves):
    class Hooks:
        @staticmethod
        @hookimpl
        def lmcache_kit_compression_methods():
            yield CompressionPlugin(name="halves", summary="", factory=lambda _: halves)

    module = types.ModuleType("halves_plugin")
    module.lmcache_kit_compression_methods = Hooks.lmcache_kit_compression_methods
    monkeypatch.setitem(sys.modules, "halves_plugin", module)
    assert isinstance(halves, SupportsBatches)
    return CodecSet(PluginRegistry(entry_points=[], modules=["halves_plugin"]))


def upper(kv):
    return kv.data.view(np.uint8)[..., 1::2].tobytes()


async def finished(store, event_id):
    await store.drain()
    return store.job(event_id)


async def test_chunks_go_through_in_one_call_and_are_counted_one_by_one(lab, tokens, codecs, halves):
    tier = lab.tier(DISK)
    store = lab.store(tier, codecs=codecs)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    tier.backend.calls.clear()
    store.start_compress("c", "halves", DISK, tokens)
    job = await finished(store, "c")
    assert (job.status, job.tokens_done, job.note) == ("done", 20, None)
    assert job.bytes_after == store.stats()["tiers"][DISK]["used_bytes"] < job.bytes_before
    assert (halves.encoded, halves.decoded) == ([[8, 8, 4]], [[8, 8, 4]])
    assert (tier.backend.count("get"), tier.backend.count("put")) == (3, 3)
    assert upper((await store.load_prefix(tokens)).kv) == upper(kv)
    halves.decoded.clear()
    store.start_decompress("d", "halves", DISK, tokens)
    assert (await finished(store, "d")).status == "done"
    assert halves.decoded == [[8, 8, 4]]
    assert store.stats()["tiers"][DISK]["codecs"] == {"naive": 3}
    lab.check(store)


async def test_no_more_go_together_than_fit(lab, codecs, halves, monkeypatch):
    monkeypatch.setattr(recoding, "_MOST_CHUNKS", 3)
    store = lab.store(lab.tier(DISK), codecs=codecs)
    tokens = list(range(59))
    await store.save(tokens, lab.kv(59))
    store.start_compress("a", "halves", DISK, tokens)
    assert (await finished(store, "a")).tokens_done == 59
    assert halves.encoded == [[8, 8, 8], [8, 8, 8], [8, 3]]
    monkeypatch.setattr(recoding, "_MOST_BYTES", 1)
    halves.decoded.clear()
    store.start_decompress("b", "halves", DISK, tokens)
    assert (await finished(store, "b")).tokens_done == 59
    assert halves.decoded == []
    lab.check(store)


async def test_those_in_the_method_already_are_left_out(lab, tokens, codecs, halves):
    store = lab.store(lab.tier(DISK), codecs=codecs)
    await store.save(tokens, lab.kv(20))
    store.start_compress("a", "halves", DISK, tokens[:8])
    assert (await finished(store, "a")).status == "done"
    store.start_compress("b", "halves", DISK, tokens)
    job = await finished(store, "b")
    assert (job.tokens_done, job.note) == (20, "1 of 3 chunks already in 'halves': nothing to do for them")
    assert halves.encoded == [[8], [8, 4]]


async def test_one_that_fails_is_named_and_those_before_it_are_done(lab, tokens, codecs, halves):
    tier = lab.tier(DISK)
    store = lab.store(tier, codecs=codecs)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    names = [key.name() for key in store.contents(DISK)]
    before = dict(tier.backend.objects)
    second = kv.tokens(8, 16).data.tobytes()
    halves.refuse = lambda part: part.data.tobytes() == second
    store.start_compress("x", "halves", DISK, tokens)
    job = await finished(store, "x")
    assert (job.status, job.tokens_done) == ("failed", 8)
    assert names[1] in job.error
    assert "cannot be represented" in job.error
    assert {name: tier.backend.objects[name] for name in names[1:]} == {name: before[name] for name in names[1:]}
    halves.refuse = lambda part: False
    store.start_compress("y", "halves", DISK, tokens)
    assert (await finished(store, "y")).tokens_done == 20
    lab.check(store)


async def test_one_that_cannot_be_read_is_named_and_those_before_it_are_done(lab, tokens, codecs):
    tier = lab.tier(DISK)
    store = lab.store(tier, codecs=codecs)
    await store.save(tokens, lab.kv(20))
    names = [key.name() for key in store.contents(DISK)]
    tier.backend.fail = lambda call, name: (call, name) == ("get", names[2])
    store.start_compress("x", "halves", DISK, tokens)
    job = await finished(store, "x")
    assert (job.status, job.tokens_done) == ("failed", 16)
    assert names[2] in job.error
    tier.backend.fail = lambda call, name: False
    lab.check(store)


async def test_chunks_that_leave_meanwhile_are_not_written_back(lab, tokens, codecs, halves):
    tier = lab.tier(DISK)
    store = lab.store(tier, codecs=codecs)
    await store.save(tokens, lab.kv(20))
    halves.open.clear()
    store.start_compress("x", "halves", DISK, tokens)
    assert await asyncio.to_thread(halves.entered.wait, 60)
    clearing = asyncio.create_task(store.clear(DISK))
    await asyncio.sleep(0.01)
    halves.open.set()
    assert await clearing == 20
    job = await finished(store, "x")
    assert job.status == "done"
    assert "left the location before their turn" in job.note
    assert tier.backend.objects == {}
    lab.check(store)


async def test_room_is_made_even_at_the_cost_of_the_next_ones(lab, tokens, codecs):
    """Chunks that were looked at ahead of their turn are not held: to make room for the first, the last must go."""
    raw = lab.blob_bytes(None)
    store = lab.store(lab.tier(DISK, 3 * raw - 100), codecs=codecs)
    kv = lab.kv(24)
    prompt = list(range(24))
    await store.save(prompt[:16], kv.tokens(0, 16))
    store.start_compress("a", "halves", DISK, None)
    await store.drain()
    await store.save(prompt, kv.tokens(16, 24), start=16)
    store.start_compress("b", "halves", DISK, None)
    assert (await finished(store, "b")).tokens_done == 24
    store.start_decompress("c", "halves", DISK, None)
    job = await asyncio.wait_for(finished(store, "c"), 60)
    assert job.status == "done"
    assert store.stats()["tiers"][DISK]["codecs"].get("naive", 0) == 2
    lab.check(store)
