import asyncio
import inspect

import numpy as np
import pytest

from lmcache_kit.errors import InvalidRequestError, NotFoundError, UnavailableError, UnknownNameError
from lmcache_kit.kv import ChunkHasher, HashSpec, KVLayout, KVTensor

CPU, DISK, REMOTE = "LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"


def same(kv, other, stop=None):
    stop = other.num_tokens if stop is None else stop
    return np.array_equal(kv.data.view(np.uint8), np.ascontiguousarray(other.data[:, :, :stop]).view(np.uint8))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 64])
@pytest.mark.parametrize("location", [CPU, DISK])
async def test_what_was_saved_is_loaded(lab, length, location):
    store = lab.store(lab.tier(location))
    tokens, kv = list(range(length)), lab.kv(length)
    result = await store.save(tokens, kv)
    assert (result.num_tokens, result.held_tokens, result.errors) == (length, 0, [])
    assert result.num_chunks == -(-length // lab.chunk)
    assert result.by_location == {location: length}
    loaded = await store.load_prefix(tokens)
    assert loaded.num_tokens == length
    assert same(loaded.kv, kv)
    assert [hit.num_tokens for hit in loaded.hits] == [min(8, length - start) for start in range(0, length, 8)]
    assert {(hit.location, hit.codec) for hit in loaded.hits} == {(location, "naive")}
    assert sum(hit.stored_bytes for hit in loaded.hits) == result.nbytes
    lab.check(store)


@pytest.mark.parametrize("limit", [0, 1, 7, 8, 9, 15, 16, 17, 19, 20, 99])
async def test_limit_may_cut_inside_a_chunk(lab, tokens, limit):
    store = lab.store(lab.tier(CPU))
    kv = lab.kv(20)
    await store.save(tokens, kv)
    loaded = await store.load_prefix(tokens, limit=limit)
    assert loaded.num_tokens == min(limit, 20) == sum(hit.num_tokens for hit in loaded.hits)
    if limit == 0:
        assert loaded.kv is None
    else:
        assert same(loaded.kv, kv, min(limit, 20))


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 16, 19, 20])
@pytest.mark.parametrize("limit", [3, 8, 17, 20, 99])
async def test_a_load_may_begin_later(lab, tokens, start, limit):
    store = lab.store(lab.tier(CPU))
    kv = lab.kv(20)
    await store.save(tokens, kv)
    first, stop = start // 8 * 8, min(limit, 20)
    loaded = await store.load_prefix(tokens, start=start, limit=limit)
    assert (loaded.start, loaded.num_tokens) == (first, max(0, stop - first))
    assert (loaded.kv is None) == (stop <= first)
    if loaded.kv is not None:
        assert same(loaded.kv, kv.tokens(first, stop))
    assert not [event for event in lab.events if event.op == "miss"]


async def test_a_load_that_begins_later_needs_nothing_before_it(lab, tokens):
    store = lab.store(lab.tier(CPU))
    kv = lab.kv(20)
    await store.save(tokens, kv.tokens(8, 20), start=8)
    assert (await store.load_prefix(tokens)).num_tokens == 0
    assert same((await store.load_prefix(tokens, start=8)).kv, kv.tokens(8, 20))


@pytest.mark.parametrize("room", [0, 1, 7, 8, 9, 11, 12])
async def test_the_caller_makes_the_tensor_as_long_as_there_is_room(lab, tokens, room):
    store = lab.store(lab.tier(CPU))
    kv = lab.kv(20)
    await store.save(tokens, kv)
    asked = []

    def make(layout, num_tokens):
        asked.append(KVTensor.empty(layout, min(room, num_tokens)))
        return asked[-1]

    loaded = await store.load_prefix(tokens, start=8, make=make)
    assert loaded.num_tokens == room
    assert sum(hit.num_tokens for hit in loaded.hits) == room
    if room:
        assert loaded.kv is asked[0]
        assert same(loaded.kv, kv.tokens(8, 8 + room))
    assert not [event for event in lab.events if event.op == "miss"]
    lab.check(store)


async def test_a_longer_prompt_finds_the_whole_chunks_of_a_shorter_one(lab, tokens):
    store = lab.store(lab.tier(CPU))
    kv = lab.kv(20)
    await store.save(tokens, kv)
    loaded = await store.load_prefix([*tokens, 5, 6])
    assert loaded.num_tokens == 16
    assert same(loaded.kv, kv, 16)
    assert (await store.load_prefix([1, *tokens])).num_tokens == 0
    assert [event.op for event in lab.events if event.op == "miss"] == ["miss", "miss"]


async def test_nothing_tokens_no_kv(lab):
    store = lab.store(lab.tier(CPU))
    loaded = await store.load_prefix([])
    assert (loaded.kv, loaded.num_tokens, loaded.hits) == (None, 0, [])
    assert store.lookup([]) == {CPU: 0}


async def test_unfull_chunks_may_be_left_out(lab, tokens):
    store = lab.store(lab.tier(CPU), hasher=ChunkHasher(HashSpec(8, save_unfull_chunk=False)))
    assert (await store.save(tokens, lab.kv(20))).num_tokens == 16
    assert (await store.load_prefix(tokens)).num_tokens == 16


async def test_short_prefixes_can_be_left_alone(lab, tokens):
    store = lab.store(lab.tier(CPU), min_retrieve_tokens=10)
    await store.save(tokens[:8], lab.kv(8))
    assert (await store.load_prefix(tokens[:8])).num_tokens == 0
    await store.save(tokens, lab.kv(20))
    assert (await store.load_prefix(tokens, limit=9)).kv is None
    assert (await store.load_prefix(tokens, limit=10)).num_tokens == 10


async def test_saving_again_stores_nothing(lab, tokens):
    store = lab.store(lab.tier(CPU), lab.tier(DISK))
    await store.save(tokens, lab.kv(20))
    again = await store.save(tokens, lab.kv(20, seed=1))
    assert (again.num_tokens, again.held_tokens, again.nbytes) == (0, 20, 0)
    longer = await store.save([*tokens, 1, 2, 3, 4, 5], lab.kv(9), start=16)
    assert (longer.num_tokens, longer.held_tokens) == (9, 0)
    lab.check(store)


@pytest.mark.parametrize(
    ("count", "start", "layout", "text"),
    [
        (20, 1, None, "multiple of 8"),
        (4, 24, None, "multiple of 8"),
        (20, -8, None, "multiple of 8"),
        (19, 0, None, "KV of 19 tokens was given for tokens 0 to 20"),
        (20, 8, None, "tokens 8 to 20"),
        (20, 0, KVLayout(2, 2, 4, "float32"), "layout"),
    ],
)
async def test_kv_that_does_not_belong_to_the_tokens_is_refused(lab, tokens, count, start, layout, text):
    store = lab.store(lab.tier(CPU))
    with pytest.raises(InvalidRequestError, match=text):
        await store.save(tokens, lab.kv(count, layout=layout or lab.layout), start=start)
    assert store.contents(CPU) == []


async def test_lookup_counts_each_location_from_token_zero(lab, tokens):
    store = lab.store(lab.tier(CPU), lab.tier(DISK))
    await store.save(tokens, lab.kv(20))
    keys = store.contents(CPU)
    await store._writer.remove(0, keys[1].name(), cause="clear")
    await store._writer.remove(1, keys[0].name(), cause="clear")
    assert store.lookup(tokens) == {CPU: 8, DISK: 0}
    loaded = await store.load_prefix(tokens)
    assert [hit.location for hit in loaded.hits] == [CPU, DISK, CPU]
    assert loaded.num_tokens == 20


WRONG = "LocalCpuBackend"
WITH_LOCATION = {
    "contents": lambda store, tokens: store.contents(WRONG),
    "pin": lambda store, tokens: store.pin(WRONG, tokens),
    "unpin": lambda store, tokens: store.unpin(WRONG, None),
    "clear": lambda store, tokens: store.clear(WRONG),
    "compress": lambda store, tokens: store.start_compress("e", "zstd", WRONG, tokens),
    "decompress": lambda store, tokens: store.start_decompress("e", "zstd", WRONG, tokens),
    "move": lambda store, tokens: store.start_move("e", WRONG, "", CPU, tokens, copy=False),
    "move to": lambda store, tokens: store.start_move("e", CPU, "", WRONG, tokens, copy=False),
    "read": lambda store, tokens: store.read(WRONG, None),
    "receive": lambda store, tokens: store.receive(WRONG, b""),
}


@pytest.mark.parametrize("call", WITH_LOCATION)
async def test_an_unknown_location_is_named(lab, tokens, call):
    store = lab.store(lab.tier(CPU))
    await store.save(tokens, lab.kv(20))
    with pytest.raises(UnknownNameError, match="unknown location 'LocalCpuBackend'") as caught:
        await _call(WITH_LOCATION[call], store, tokens)
    assert caught.value.known == [CPU]


async def _call(function, *args):
    result = function(*args)
    return await result if inspect.isawaitable(result) else result


async def test_a_prompt_larger_than_the_tier_keeps_its_front(lab):
    store = lab.store(lab.tier(CPU, 1000))
    tokens = list(range(64))
    result = await store.save(tokens, lab.kv(64))
    assert 0 < result.num_tokens < 64
    assert store.lookup(tokens) == {CPU: result.num_tokens}
    assert len(result.errors) == 1
    assert "has no room" in result.errors[0]
    lab.check(store)
    other = [9, *tokens]
    assert (await store.save(other, lab.kv(65))).num_tokens > 0
    assert store.lookup(tokens) == {CPU: 0}
    lab.check(store)


@pytest.mark.parametrize("placement", ["demote", "write_back"])
async def test_the_rest_of_a_prompt_larger_than_the_first_tier_goes_to_the_next(lab, placement):
    room = 3 * lab.blob_bytes(None)
    store = lab.store(lab.tier(CPU, room), lab.tier(DISK, 2 * room), placement=placement)
    tokens = list(range(64))
    result = await store.save(tokens, lab.kv(64))
    await store.drain()
    assert result.num_tokens == 64
    assert not result.errors
    assert store.lookup(tokens)[CPU] >= 24, "the front"
    loaded = await store.load_prefix(tokens)
    assert loaded.num_tokens == 64
    assert np.array_equal(loaded.kv.data, lab.kv(64).data)
    await store.drain()
    lab.check(store)


async def test_the_next_tier_stands_in_for_one_that_is_down(lab, tokens):
    cpu = lab.tier(CPU, inline=False)
    store = lab.store(cpu, lab.tier(DISK), placement="demote")
    cpu.backend.fail = lambda call, name: call == "put"
    result = await store.save(tokens, lab.kv(20))
    assert result.num_tokens == 20
    assert result.by_location == {DISK: 20}
    assert len(result.errors) == 1, "it is told once, and not asked for every chunk"
    assert cpu.backend.count("put") == 1
    assert store.lookup(tokens) == {CPU: 0, DISK: 20}
    lab.check(store)


async def test_a_chunk_larger_than_every_tier_is_reported(lab, tokens):
    store = lab.store(lab.tier(CPU, 10), lab.tier(DISK, 10))
    result = await store.save(tokens, lab.kv(20))
    assert result.num_tokens == 0
    assert "no tier takes" in result.errors[0]


async def test_broadcast_goes_on_with_the_tiers_that_work(lab, tokens):
    disk = lab.tier(DISK)
    disk.backend.fail = lambda call, name: call == "put"
    store = lab.store(lab.tier(CPU), disk)
    result = await store.save(tokens, lab.kv(20))
    assert result.num_tokens == 20
    assert result.by_location == {CPU: 20}
    assert len(result.errors) == 1
    assert disk.backend.count("put") == 1, "one try for a whole save, not one for each chunk"
    assert store.stats()["tiers"][DISK]["unavailable"] >= 1
    lab.check(store)
    disk.backend.fail = lambda call, name: False
    assert (await store.save([7, *tokens], lab.kv(21))).by_location == {CPU: 21, DISK: 21}
    assert store.stats()["tiers"][DISK]["available"]
    lab.check(store)


async def test_demotion_and_promotion_move_the_only_copy(lab, tokens):
    chunk = lab.blob_bytes(None)
    store = lab.store(lab.tier(CPU, 2 * chunk), lab.tier(DISK), placement="demote")
    kv, other = lab.kv(16), lab.kv(16, seed=1)
    await store.save(tokens[:16], kv)
    await store.save(list(range(16)), other)
    assert store.lookup(tokens[:16]) == {CPU: 0, DISK: 16}
    lab.check(store)
    loaded = await store.load_prefix(tokens[:16])
    assert same(loaded.kv, kv)
    assert {hit.location for hit in loaded.hits} == {DISK}
    await store.drain()
    assert store.lookup(tokens[:16]) == {CPU: 16, DISK: 0}
    assert store.lookup(list(range(16))) == {CPU: 0, DISK: 16}
    lab.check(store)
    assert same((await store.load_prefix(list(range(16)))).kv, other)


async def test_write_back_copies_after_the_save(lab, tokens):
    disk = lab.tier(DISK)
    gate = disk.backend.shut("put")
    store = lab.store(lab.tier(CPU), disk, placement="write_back")
    result = await store.save(tokens, lab.kv(20))
    assert result.by_location == {CPU: 20}
    assert store.lookup(tokens) == {CPU: 20, DISK: 0}
    gate.set()
    await store.drain()
    assert store.lookup(tokens) == {CPU: 20, DISK: 20}
    assert store.stats()["tiers"][DISK]["write_backs"] == 3
    lab.check(store)


async def test_a_load_during_a_demotion_finds_the_chunk(lab, tokens):
    chunk = lab.blob_bytes(None)
    disk = lab.tier(DISK)
    gate = disk.backend.shut("put")
    store = lab.store(lab.tier(CPU, chunk), disk, placement="demote")
    kv = lab.kv(8)
    await store.save(tokens[:8], kv)
    saving = asyncio.create_task(store.save([1] * 8, lab.kv(8, seed=1)))
    await disk.backend.called("put")
    loading = asyncio.create_task(store.load_prefix(tokens[:8]))
    await asyncio.sleep(0.01)
    assert store.lookup(tokens[:8])[CPU] == 8
    gate.set()
    assert same((await loading).kv, kv)
    assert (await saving).num_tokens == 8
    await store.drain()
    lab.check(store)


async def test_concurrent_saves_of_one_prompt_write_each_chunk_once(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(lab.tier(CPU), disk)
    results = await asyncio.gather(*[store.save(tokens, lab.kv(20)) for _ in range(8)])
    assert sum(result.num_tokens for result in results) == 20
    assert all(result.num_tokens + result.held_tokens == 20 for result in results)
    assert disk.backend.count("put") == 3
    lab.check(store)


async def test_concurrent_loads_read_each_chunk_once(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(disk, threads=4)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    gate = disk.backend.shut("get")
    loads = [asyncio.create_task(store.load_prefix(tokens)) for _ in range(6)]
    await asyncio.sleep(0.05)
    gate.set()
    for loaded in await asyncio.gather(*loads):
        assert same(loaded.kv, kv)
    assert disk.backend.count("get") <= 2 * 3
    lab.check(store)


async def test_a_cancelled_save_leaves_a_consistent_store(lab, tokens):
    disk = lab.tier(DISK)
    gate = disk.backend.shut("put")
    store = lab.store(disk)
    saving = asyncio.create_task(store.save(tokens, lab.kv(20)))
    await disk.backend.called("put")
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    gate.set()
    await store.drain()
    assert store.lookup(tokens) == {DISK: 8}
    lab.check(store)


async def test_a_cancelled_load_releases_what_it_held(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(disk)
    await store.save(tokens, lab.kv(20))
    gate = disk.backend.shut("get")
    loading = asyncio.create_task(store.load_prefix(tokens))
    await disk.backend.called("get")
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    gate.set()
    assert await store.clear(DISK) == 20
    lab.check(store)


async def test_clear_waits_for_reads_and_keeps_pins(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(disk)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    assert store.pin(DISK, tokens[:8], owner="me") == 8
    gate = disk.backend.shut("get")
    loading = asyncio.create_task(store.load_prefix(tokens))
    await disk.backend.called("get")
    clearing = asyncio.create_task(store.clear(DISK))
    await asyncio.sleep(0.01)
    assert disk.backend.count("delete") == 0
    gate.set()
    assert same((await loading).kv, kv)
    assert await clearing == 12
    assert store.lookup(tokens) == {DISK: 8}
    lab.check(store)


async def test_clear_of_a_tier_that_fails_is_an_error_and_keeps_the_chunks(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(disk)
    await store.save(tokens, lab.kv(20))
    disk.backend.fail = lambda call, name: call == "delete"
    with pytest.raises(UnavailableError, match=DISK):
        await store.clear(DISK)
    assert store.lookup(tokens) == {DISK: 20}
    lab.check(store)
    disk.backend.fail = lambda call, name: False
    assert await store.clear(DISK) == 20


async def test_pins_by_owner_and_time(lab, tokens):
    store = lab.store(lab.tier(CPU, 1700))
    await store.save(tokens, lab.kv(20))
    assert store.pin(CPU, tokens, owner="a", ttl=10) == 20
    assert store.pin(CPU, tokens[:8], owner="b") == 8
    assert (await store.save([3] * 64, lab.kv(64))).num_tokens < 64
    assert store.lookup(tokens) == {CPU: 20}
    lab.clock.advance(10)
    assert store.stats()["tiers"][CPU]["pinned"] == 1
    await store.save([4] * 64, lab.kv(64))
    assert store.lookup(tokens) == {CPU: 8}
    assert store.unpin(CPU, tokens, owner="a") == 0
    assert store.unpin(CPU, None, owner="b") == 8
    assert store.unpin(CPU, None, owner="b") == 0
    lab.check(store)


async def test_pinning_what_is_not_held_is_an_error(lab, tokens):
    store = lab.store(lab.tier(CPU))
    with pytest.raises(NotFoundError, match="LocalCPUBackend holds none of these tokens"):
        store.pin(CPU, tokens)
    with pytest.raises(InvalidRequestError, match="ttl"):
        store.pin(CPU, tokens, ttl=-1)


async def test_the_events_tell_one_load_after_another(lab, tokens):
    store = lab.store(lab.tier(CPU, 3 * lab.blob_bytes(None)))
    await store.save(tokens, lab.kv(20))
    await store.load_prefix(tokens)
    ops = [(event.op, event.cause) for event in lab.events]
    assert ops == [("admit", "store")] * 3 + [("hit", "")] * 3
    keys = [event.key for event in lab.events]
    assert keys[3:] == keys[2::-1], "the front of the prefix is touched last, so it is evicted last"


async def test_layout_with_one_plane(lab, tokens):
    layout = KVLayout(3, 1, 16, "bfloat16", 1)
    store = lab.store(lab.tier(CPU), layout=layout)
    kv = KVTensor(layout, np.random.default_rng(0).standard_normal(layout.shape(20)).astype(layout.np_dtype))
    await store.save(tokens, kv)
    assert same((await store.load_prefix(tokens, limit=19)).kv, kv, 19)


async def test_close_is_idempotent_and_closes_the_backends(lab):
    tier = lab.tier(DISK)
    store = lab.store(tier)
    await store.close()
    await store.close()
    assert tier.backend.closed


async def test_two_tiers_of_one_location_are_refused(lab):
    with pytest.raises(InvalidRequestError, match="different locations"):
        lab.store(lab.tier(CPU), lab.tier(CPU))
    with pytest.raises(InvalidRequestError):
        lab.store()
    with pytest.raises(UnknownNameError, match="compression method"):
        lab.store(lab.tier(CPU), store_codec="none_such")


@pytest.mark.parametrize("method", ["zstd", "fp8"])
async def test_new_chunks_may_be_stored_compressed(lab, tokens, method):
    store = lab.store(lab.tier(CPU), store_codec=method)
    kv = lab.kv(20)
    await store.save(tokens, kv)
    loaded = await store.load_prefix(tokens)
    assert {hit.codec for hit in loaded.hits} == {method}
    assert np.allclose(loaded.kv.data.astype(np.float32), kv.data.astype(np.float32), atol=0.3)
    assert store.stats()["tiers"][CPU]["codecs"] == {method: 3}
