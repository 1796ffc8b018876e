"""Damaged bytes and stores that cannot be reached never become an error of a completion."""

import asyncio

import numpy as np
import pytest

from lmcache_kit.errors import CapacityError, UnavailableError
from lmcache_kit.kv import BlobHeader, ChunkKey, KVLayout, KVTensor, pack_blob

CPU, DISK, REMOTE = "LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"


def same(kv, other, stop=None):
    stop = other.num_tokens if stop is None else stop
    return np.array_equal(kv.data.view(np.uint8), np.ascontiguousarray(other.data[:, :, :stop]).view(np.uint8))


def flip(blob: bytes, at: int) -> bytes:
    damaged = bytearray(blob)
    damaged[at] ^= 0x40
    return bytes(damaged)


def wrong_key(blob, kv):
    return pack_blob(BlobHeader("naive", 1, kv.layout, 8, ChunkKey("m", 1)), kv.tokens(0, 8).tobytes_view())


def wrong_layout(key):
    layout = KVLayout(2, 2, 4, "bfloat16")
    return pack_blob(BlobHeader("naive", 1, layout, 8, key), bytes(layout.nbytes(8)))


def wrong_tokens(key, layout):
    return pack_blob(BlobHeader("naive", 1, layout, 7, key), bytes(layout.nbytes(7)))


DAMAGE = {
    "payload": lambda blob, key, kv: flip(blob, -1),
    "header": lambda blob, key, kv: flip(blob, 9),
    "truncated": lambda blob, key, kv: blob[:-1],
    "empty": lambda blob, key, kv: b"",
    "longer": lambda blob, key, kv: blob + b"x",
    "pickle": lambda blob, key, kv: b"\x80\x04cos\nsystem\n.",
    "another key": lambda blob, key, kv: bytes(wrong_key(blob, kv)),
    "another layout": lambda blob, key, kv: bytes(wrong_layout(key)),
    "other tokens": lambda blob, key, kv: bytes(wrong_tokens(key, kv.layout)),
    "unknown codec": lambda blob, key, kv: bytes(pack_blob(BlobHeader("lost", 1, kv.layout, 8, key), b"")),
    "undecodable": lambda blob, key, kv: bytes(pack_blob(BlobHeader("zstd", 1, kv.layout, 8, key), b"not zstd")),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_chunk_shortens_the_prefix_and_is_dropped(lab, tokens, damage):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    key = store.contents(DISK)[1]
    tier.backend.objects[key.name()] = DAMAGE[damage](tier.backend.objects[key.name()], key, kv)
    loaded = await store.load_prefix(tokens)
    assert loaded.num_tokens == 8
    assert same(loaded.kv, kv, 8)
    assert len(loaded.hits) == 1
    assert store.stats()["tiers"][DISK]["damaged"] == 1
    assert key not in store.contents(DISK)
    assert key.name() not in tier.backend.objects
    assert (lab.changes[-1].op, lab.changes[-1].key) == ("evict", key)
    lab.check(store)
    assert (await store.save(tokens, kv)).num_tokens == 8
    assert same((await store.load_prefix(tokens)).kv, kv)


@pytest.mark.parametrize("first", [0, 1, 2])
async def test_the_next_tier_serves_what_is_damaged_in_the_first(lab, tokens, first):
    tier = lab.tier(CPU)
    store = lab.store(tier, lab.tier(DISK))
    kv = lab.kv(20)
    await store.save(tokens, kv)
    key = store.contents(CPU)[first]
    tier.backend.objects[key.name()] = flip(tier.backend.objects[key.name()], -3)
    loaded = await store.load_prefix(tokens)
    assert same(loaded.kv, kv)
    assert [hit.location for hit in loaded.hits] == [DISK if index == first else CPU for index in range(3)]
    await store.drain()
    assert store.lookup(tokens) == {CPU: 20, DISK: 20}, "a good copy took its place"
    lab.check(store)


async def test_bytes_that_vanished_are_a_miss(lab, tokens):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    await store.save(tokens, lab.kv(20))
    tier.backend.objects.clear()
    assert (await store.load_prefix(tokens)).num_tokens == 0
    assert store.lookup(tokens) == {DISK: 0}
    assert store.stats()["tiers"][DISK]["missing"] >= 1


async def test_damaged_and_pinned_is_dropped_all_the_same(lab, tokens):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    await store.save(tokens[:8], lab.kv(8))
    store.pin(DISK, tokens[:8])
    (name,) = tier.backend.objects
    tier.backend.objects[name] = b"?"
    assert (await store.load_prefix(tokens[:8])).num_tokens == 0
    assert tier.backend.objects == {}
    assert store.stats()["tiers"][DISK]["pinned"] == 0


async def test_two_loads_that_meet_the_same_damage_both_end(lab, tokens):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    await store.save(tokens, lab.kv(20))
    name = store.contents(DISK)[0].name()
    tier.backend.objects[name] = b"?"
    loads = await asyncio.gather(*[store.load_prefix(tokens) for _ in range(4)])
    assert [loaded.num_tokens for loaded in loads] == [0] * 4
    lab.check(store)


async def test_an_unavailable_tier_is_a_miss_until_it_is_back(lab, tokens):
    remote = lab.tier(REMOTE)
    store = lab.store(remote)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    remote.backend.fail = lambda call, name: True
    assert (await store.load_prefix(tokens)).num_tokens == 0
    stats = store.stats()["tiers"][REMOTE]
    assert stats["unavailable"] >= 1
    assert "told to fail" in stats["last_error"]
    assert not stats["available"]
    remote.backend.fail = lambda call, name: False
    assert same((await store.load_prefix(tokens)).kv, kv)
    assert store.stats()["tiers"][REMOTE]["available"]
    lab.check(store)


async def test_what_only_an_unavailable_tier_holds_is_stored_again_elsewhere(lab, tokens):
    remote = lab.tier(REMOTE)
    store = lab.store(lab.tier(CPU), remote, placement="broadcast")
    kv = lab.kv(20)
    await store.save(tokens, kv)
    await store.clear(CPU)
    remote.backend.fail = lambda call, name: True
    assert (await store.load_prefix(tokens)).num_tokens == 0
    assert (await store.save(tokens, kv)).by_location == {CPU: 20}
    assert same((await store.load_prefix(tokens)).kv, kv)


async def test_a_failed_eviction_keeps_the_object_and_refuses_the_new_one(lab, tokens):
    disk = lab.tier(DISK, lab.blob_bytes(None))
    store = lab.store(disk)
    kv = lab.kv(8)
    await store.save(tokens[:8], kv)
    disk.backend.fail = lambda call, name: call == "delete"
    result = await store.save([1] * 8, lab.kv(8))
    assert result.num_tokens == 0
    assert "could not make room" in result.errors[0]
    assert same((await store.load_prefix(tokens[:8])).kv, kv)
    lab.check(store)


async def test_a_failed_demotion_drops_the_object_and_stores_the_new_one(lab, tokens):
    disk = lab.tier(DISK)
    disk.backend.fail = lambda call, name: call == "put"
    store = lab.store(lab.tier(CPU, lab.blob_bytes(None)), disk, placement="demote")
    await store.save(tokens[:8], lab.kv(8))
    assert (await store.save([1] * 8, lab.kv(8, seed=1))).num_tokens == 8
    assert store.lookup(tokens[:8]) == {CPU: 0, DISK: 0}
    lab.check(store)


async def test_a_put_that_wrote_before_it_failed_leaves_nothing_behind(lab, tokens):
    disk = lab.tier(DISK)
    whole = disk.backend.put

    def put(name, blob):
        whole(name, blob)
        raise OSError("the answer was lost")

    disk.backend.put = put
    store = lab.store(disk)
    result = await store.save(tokens, lab.kv(20))
    assert "OSError: the answer was lost" in result.errors[0]
    assert disk.backend.objects == {}
    lab.check(store)


async def test_a_write_that_nobody_can_confirm_keeps_its_room_until_it_is_settled(lab, tokens):
    disk = lab.tier(DISK, lab.blob_bytes(None))
    put = disk.backend.put
    store = lab.store(disk)

    def answer_lost(name, blob):
        put(name, blob)
        disk.backend.fail = lambda call, name: True
        raise OSError("the connection broke")

    disk.backend.put = answer_lost
    assert (await store.save(tokens[:8], lab.kv(8))).num_tokens == 0
    disk.backend.put = put
    assert store.stats()["tiers"][DISK]["used_bytes"] == 600
    assert store.lookup(tokens) == {DISK: 0}
    assert (await store.load_prefix(tokens)).num_tokens == 0
    assert (await store.save([1] * 8, lab.kv(8))).num_tokens == 0, "its room cannot be had while it cannot be deleted"
    disk.backend.fail = lambda call, name: False
    assert (await store.save(tokens[:8], lab.kv(8))).num_tokens == 8
    lab.check(store)


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_deletion_that_nobody_can_confirm_is_repeated(lab, tokens, deleted):
    disk = lab.tier(DISK)
    store = lab.store(disk)
    await store.save(tokens, lab.kv(20))
    delete = disk.backend.delete

    def answer_lost(name):
        if deleted:
            delete(name)
        disk.backend.fail = lambda call, name: True
        raise OSError("the connection broke")

    disk.backend.delete = answer_lost
    with pytest.raises(UnavailableError):
        await store.clear(DISK)
    assert store.lookup(tokens) == {DISK: 0}
    disk.backend.delete, disk.backend.fail = delete, lambda call, name: False
    assert await store.clear(DISK) == 12
    assert disk.backend.objects == {}
    lab.check(store)


async def test_a_deletion_that_worked_and_failed_is_a_deletion(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(disk)
    await store.save(tokens, lab.kv(20))
    delete = disk.backend.delete

    def answer_lost(name):
        delete(name)
        raise OSError("the answer was lost")

    disk.backend.delete = answer_lost
    assert await store.clear(DISK) == 20
    lab.check(store)


async def test_a_full_disk_is_a_matter_of_capacity(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(lab.tier(CPU), disk)

    def full(name, blob):
        raise CapacityError("no space left on device")

    disk.backend.put = full
    result = await store.save(tokens, lab.kv(20))
    assert result.by_location == {CPU: 20}
    assert all("no space left on device" in error for error in result.errors)
    stats = store.stats()["tiers"][DISK]
    assert (stats["unavailable"], stats["failed_writes"], stats["available"]) == (0, 3, True)
    lab.check(store)


async def test_an_error_of_the_codec_ends_the_save_and_is_reported(lab, tokens):
    store = lab.store(lab.tier(CPU), store_codec="fp8")
    values = lab.kv(20).data.copy()
    values[0, 0, 9] = np.nan
    result = await store.save(tokens, KVTensor(lab.layout, values))
    held = store.lookup(tokens)[CPU]
    assert held == result.num_tokens
    assert held == 20 or result.errors
    lab.check(store)


async def test_shared_tiers_serve_what_others_put_there(lab, tokens):
    ours, theirs = lab.tier(REMOTE, shared=True), lab.tier(REMOTE, shared=True)
    theirs.backend = ours.backend
    kv = lab.kv(20)
    other = lab.store(theirs)
    await other.save(tokens, kv)
    lab.changes.clear()
    store = lab.store(lab.tier(CPU), ours, placement="demote")
    assert store.lookup(tokens) == {CPU: 0, REMOTE: 0}
    loaded = await store.load_prefix(tokens)
    assert same(loaded.kv, kv)
    assert {hit.location for hit in loaded.hits} == {REMOTE}
    await store.drain()
    assert store.lookup(tokens)[CPU] == 20
    assert store.stats()["tiers"][REMOTE]["used_bytes"] == 0, "the bytes are the other instance's"
    assert len(ours.backend.objects) == 3, "and it is not ours to delete them"


async def test_saving_what_another_instance_stored_writes_nothing(lab, tokens):
    ours, theirs = lab.tier(REMOTE, shared=True), lab.tier(REMOTE, shared=True)
    theirs.backend = ours.backend
    await lab.store(theirs).save(tokens, lab.kv(20))
    puts = ours.backend.count("put")
    lab.changes.clear()
    store = lab.store(ours)
    result = await store.save(tokens, lab.kv(20))
    assert (result.num_tokens, result.held_tokens, ours.backend.count("put")) == (0, 20, puts)
    assert store.lookup(tokens) == {REMOTE: 20}
    assert await store.clear(REMOTE) == 0
    assert store.lookup(tokens) == {REMOTE: 0}
    assert len(ours.backend.objects) == 3


async def test_shared_tiers_lose_what_others_delete(lab, tokens):
    remote = lab.tier(REMOTE, shared=True)
    store = lab.store(remote)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    del remote.backend.objects[store.contents(REMOTE)[2].name()]
    loaded = await store.load_prefix(tokens)
    assert loaded.num_tokens == 16
    assert store.lookup(tokens) == {REMOTE: 16}
    lab.check(store)


async def test_a_damaged_foreign_object_is_deleted_and_not_announced(lab, tokens):
    remote = lab.tier(REMOTE, shared=True)
    store = lab.store(remote)
    other = lab.store(lab.tier(DISK))
    await other.save(tokens[:8], lab.kv(8))
    lab.changes.clear()
    name = other.contents(DISK)[0].name()
    remote.backend.objects[name] = b"?"
    assert (await store.load_prefix(tokens[:8])).num_tokens == 0
    assert remote.backend.objects == {}
    assert lab.changes == []
