"""Moves between tiers and between instances: verified at the destination before the source is freed."""

import numpy as np
import pytest

from lmcache_kit.errors import (
    BlobError,
    CapacityError,
    ConflictError,
    NotFoundError,
    TransportError,
    UnavailableError,
    UnknownNameError,
)
from lmcache_kit.kv import ChunkKey, KVLayout

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
PEER = "inproc://b"


class Peers:
    """Links by address, straight into the other stores."""

    def __init__(self, own="inproc://a"):
        self.own, self.stores, self.answer = own, {}, None

    def is_self(self, url):
        return url == self.own

    async def send(self, peer_url, location, blob, *, timeout, move):
        if peer_url not in self.stores:
            raise UnavailableError(f"peer {peer_url} does not answer")
        tokens = await self.stores[peer_url].receive(location, bytes(blob), move=move)
        return tokens if self.answer is None else self.answer


@pytest.fixture
def peers():
    return Peers()


@pytest.fixture
def pair(lab, peers):
    other = type(lab)(clock=lab.clock)
    source = lab.store(lab.tier(CPU), lab.tier(DISK), peers=peers, placement="demote")
    target = other.store(other.tier(CPU), other.tier(DISK), placement="demote")
    peers.stores[PEER] = target
    lab.stores.append(target)
    return lab, source, other, target


def same(kv, other):
    return np.array_equal(kv.data.view(np.uint8), other.data.view(np.uint8))


async def moved(store, *args, copy=False):
    planned = store.start_move("m", *args, copy=copy)
    assert planned.status == "queued"
    await store.drain()
    return store.job("m")


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("url", ["", "inproc://a"])
async def test_to_another_tier(pair, tokens, copy, url):
    lab, store, _, _ = pair
    kv = lab.kv(20)
    await store.save(tokens, kv)
    job = await moved(store, CPU, url, DISK, tokens, copy=copy)
    assert (job.status, job.num_tokens, job.tokens_done, job.note) == ("done", 20, 20, None)
    assert job.bytes_before == job.bytes_after > 0
    assert store.lookup(tokens) == {CPU: 20 if copy else 0, DISK: 20}
    lab.check(store)
    assert same((await store.load_prefix(tokens)).kv, kv)


@pytest.mark.parametrize("copy", [True, False])
async def test_to_a_peer_as_it_is_stored(pair, tokens, copy):
    lab, store, other, target = pair
    kv = lab.smooth(20)
    await store.save(tokens, kv)
    store.start_compress("c", "zstd", CPU, tokens)
    await store.drain()
    blobs = dict(store._io.tiers[0].backend.objects)
    job = await moved(store, CPU, PEER, DISK, tokens, copy=copy)
    assert (job.status, job.tokens_done) == ("done", 20)
    assert target._io.tiers[1].backend.objects == blobs
    assert target.stats()["tiers"][DISK]["codecs"] == {"zstd": 3}
    assert store.lookup(tokens)[CPU] == (20 if copy else 0)
    assert target.lookup(tokens) == {CPU: 0, DISK: 20}
    assert same((await target.load_prefix(tokens)).kv, kv)
    await target.drain()
    lab.check(store)
    other.check(target)


async def test_what_is_there_already_is_said(pair, tokens):
    lab, store, _, _ = pair
    await store.save(tokens, lab.kv(20))
    store.start_move("1", CPU, "", DISK, tokens[:8], copy=True)
    job = await moved(store, CPU, "", DISK, tokens)
    assert (job.status, job.note) == ("done", "1 of 3 chunks were at the destination already")
    assert store.lookup(tokens) == {CPU: 0, DISK: 20}
    lab.check(store)


async def test_a_pinned_source_stays(pair, tokens):
    lab, store, _, _ = pair
    await store.save(tokens, lab.kv(20))
    store.pin(CPU, tokens[:8])
    job = await moved(store, CPU, "", DISK, tokens)
    assert job.note == "1 of 3 chunks are pinned and stay at the source too"
    assert store.lookup(tokens) == {CPU: 8, DISK: 20}
    lab.check(store)


async def test_refusals_are_made_before_anything_moves(pair, tokens):
    lab, store, _, target = pair
    with pytest.raises(NotFoundError, match="holds none"):
        store.start_move("m", CPU, "", DISK, tokens, copy=False)
    await store.save(tokens, lab.kv(20))
    with pytest.raises(ConflictError, match="already in LocalCPUBackend"):
        store.start_move("m", CPU, "", CPU, tokens, copy=False)
    with pytest.raises(UnknownNameError, match="unknown location 'Tape'"):
        store.start_move("m", CPU, "", "Tape", tokens, copy=False)
    await target.save(tokens, lab.kv(20))
    with pytest.raises(NotFoundError, match="no peer links"):
        target.start_move("m", CPU, PEER, CPU, tokens, copy=False)


FAILURES = {
    "no such peer": ("inproc://c", CPU, "does not answer"),
    "no such location": (PEER, "Tape", "unknown location 'Tape'"),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_a_failed_move_keeps_the_source(pair, tokens, case):
    lab, store, _, _ = pair
    url, location, text = FAILURES[case]
    kv = lab.kv(20)
    await store.save(tokens, kv)
    job = await moved(store, CPU, url, location, tokens)
    assert (job.status, job.tokens_done) == ("failed", 0)
    assert text in job.error
    assert store.contents(CPU)[0].name() in job.error
    assert same((await store.load_prefix(tokens)).kv, kv)
    lab.check(store)


async def test_a_peer_that_took_less_than_all_keeps_the_source(pair, tokens, peers):
    lab, store, _, _ = pair
    await store.save(tokens, lab.kv(20))
    peers.answer = 7
    job = await moved(store, CPU, PEER, CPU, tokens)
    assert job.status == "failed"
    assert "accepted 7 of 8 tokens" in job.error
    assert store.lookup(tokens)[CPU] == 20


async def test_another_model_refuses(lab, tokens, peers):
    source = lab.store(lab.tier(CPU), peers=peers)
    for number, more in enumerate(({"model": "other"}, {"layout": KVLayout(2, 2, 4, "bfloat16")})):
        peers.stores[PEER] = type(lab)(clock=lab.clock).store(lab.tier(CPU), **more)
        lab.stores.append(peers.stores[PEER])
        await source.save(tokens, lab.kv(20))
        source.start_move(f"m{number}", CPU, PEER, CPU, tokens, copy=False)
        await source.drain()
        job = source.job(f"m{number}")
        assert job.status == "failed"
        assert "this instance serves" in job.error
        assert source.lookup(tokens) == {CPU: 20}


async def test_a_destination_without_room_keeps_the_source_and_what_was_moved(lab, tokens):
    store = lab.store(lab.tier(CPU), lab.tier(DISK, 2 * lab.blob_bytes(None)), placement="demote")
    kv = lab.kv(24)
    tokens = [*tokens, 1, 2, 3, 4]
    await store.save(tokens, kv)
    job = await moved(store, CPU, "", DISK, tokens)
    assert (job.status, job.tokens_done) == ("failed", 16)
    assert "LocalDiskBackend has no room" in job.error
    assert store.lookup(tokens) == {CPU: 0, DISK: 16}
    assert same((await store.load_prefix(tokens)).kv, kv)
    await store.drain()
    lab.check(store)


async def test_a_destination_that_damages_what_it_stores_is_found_out(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(lab.tier(CPU), disk, placement="demote")
    kv = lab.kv(20)
    await store.save(tokens, kv)
    put = disk.backend.put
    disk.backend.put = lambda name, blob: put(name, bytes(blob)[:-1] + b"?")
    job = await moved(store, CPU, "", DISK, tokens)
    assert job.status == "failed"
    assert "gave back other bytes" in job.error
    assert disk.backend.objects == {}
    assert store.lookup(tokens) == {CPU: 20, DISK: 0}
    assert same((await store.load_prefix(tokens)).kv, kv)


async def test_a_damaged_source_is_not_sent(pair, tokens):
    lab, store, _, target = pair
    await store.save(tokens, lab.kv(20))
    name = store.contents(CPU)[0].name()
    store._io.tiers[0].backend.objects[name] += b"?"
    job = await moved(store, CPU, PEER, CPU, tokens)
    assert job.status == "failed"
    assert name in job.error
    assert target.lookup(tokens) == {CPU: 0, DISK: 0}


async def test_receive_refuses_what_it_cannot_serve(lab, tokens):
    source, store = lab.store(lab.tier(DISK)), lab.store(lab.tier(CPU, 700))
    await source.save(tokens, lab.kv(20))
    key = source.contents(DISK)[0]
    blob = await source.read(DISK, key)
    with pytest.raises(BlobError):
        await store.receive(CPU, bytes(blob)[:-1])
    with pytest.raises(BlobError):
        await store.receive(CPU, b"")
    small = lab.store(lab.tier(CPU, 10))
    with pytest.raises(CapacityError):
        await small.receive(CPU, blob)
    assert await store.receive(CPU, memoryview(bytearray(blob))) == 8
    assert await store.receive(CPU, blob) == 8
    assert store.contents(CPU) == [key]
    assert bytes(await store.read(CPU, key)) == bytes(blob)
    assert await store.read(CPU, ChunkKey("m", 1)) is None
    assert TransportError("x").status == 503


async def test_a_move_never_makes_room_for_itself(lab, peers):
    other = type(lab)(clock=lab.clock)
    source = lab.store(lab.tier(CPU), peers=peers)
    await source.save(list(range(40)), lab.kv(40))
    blob = await source.read(CPU, source.contents(CPU)[0])
    target = other.store(other.tier(CPU, int(2.5 * len(blob))))
    peers.stores[PEER] = target
    lab.stores.append(target)
    await target.save(list(range(100, 116)), lab.kv(16))  # others make room
    failed = await moved(source, CPU, PEER, CPU, list(range(40)))
    assert (failed.status, failed.tokens_done) == ("failed", 16)
    assert "no room" in failed.error
    assert target.lookup(list(range(40))) == {CPU: 16}
    assert sum(entry.num_tokens for entry in source._core.tiers[0].listed()) == 24, "nothing is lost on the way"
    # A later move is another one: it may take the place of what came before.
    source.start_move("n", CPU, PEER, CPU, None, copy=True)
    await source.drain()
    assert source.job("n").tokens_done == 16
    assert target.lookup(list(range(40))) == {CPU: 0}


async def test_only_the_last_moves_are_remembered():
    from lmcache_kit.instance.store.arrivals import Arrivals

    arrivals = Arrivals(keep=2)
    for move in ("one", "two", "one", "three"):
        assert arrivals.of(move, CPU) == ({"x-one"} if move == "one" and len(arrivals.of("one", CPU)) else set())
        arrivals.add(move, CPU, f"x-{move}")
    assert arrivals.of("one", CPU) == {"x-one"}
    assert arrivals.of("one", DISK) == set(), "by location"
    assert arrivals.of("three", CPU) == set(), "the one without a chunk for the longest time was forgotten"
    arrivals.add("", CPU, "loner")
    assert arrivals.of("", CPU) == set()
