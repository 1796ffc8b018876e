"""Copies in the background and jobs that meet what changed or failed since they were decided."""

from __future__ import annotations

import pytest

from lmcache_kit.errors import NotFoundError

CPU, DISK, REMOTE = "LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"


def failing(*calls):
    return lambda call, name: call in calls


async def test_a_promotion_that_fails_leaves_its_source(lab, tokens):
    cpu, disk = lab.tier(CPU), lab.tier(DISK)
    store = lab.store(cpu, disk, placement="demote")
    await store.save(tokens, lab.kv(20))
    store.start_move("m", CPU, "", DISK, None, copy=False)
    await store.drain()
    cpu.backend.fail = failing("put")
    assert (await store.load_prefix(tokens)).num_tokens == 20
    await store.drain()
    assert store.lookup(tokens) == {CPU: 0, DISK: 20}
    assert store.stats()["tiers"][CPU]["promotions"] == 0
    cpu.backend.fail = failing()
    assert (await store.load_prefix(tokens)).num_tokens == 20
    await store.drain()
    assert store.lookup(tokens) == {CPU: 20, DISK: 0}


async def test_one_failed_write_back_ends_those_of_its_save_to_that_tier(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(lab.tier(CPU), disk, placement="write_back")
    disk.backend.fail = failing("put")
    assert (await store.save(tokens, lab.kv(20))).num_tokens == 20
    await store.drain()
    assert disk.backend.count("put") == 1, "one deadline for the whole save"
    assert store.stats()["tiers"][DISK]["write_backs"] == 0
    assert store.lookup(tokens) == {CPU: 20, DISK: 0}
    lab.check(store)


async def test_a_write_back_without_room_goes_on_with_the_next_chunk(lab, tokens):
    """Room for one chunk below, which is pinned there."""
    disk = lab.tier(DISK, lab.blob_bytes(None))
    store = lab.store(lab.tier(CPU), disk, placement="write_back")
    await store.save([9] * 8, lab.kv(8))
    await store.drain()
    store.pin(DISK, [9] * 8)
    await store.save(tokens, lab.kv(20))
    await store.drain()
    assert store.lookup([9] * 8)[DISK] == 8
    assert store.lookup(tokens) == {CPU: 20, DISK: 0}
    lab.check(store)


@pytest.mark.parametrize("how", ["unreachable", "vanished", "damaged"])
async def test_a_write_back_whose_source_cannot_be_read_copies_nothing(lab, tokens, how):
    cpu, disk = lab.tier(CPU, inline=False), lab.tier(DISK)
    store = lab.store(cpu, disk, placement="write_back")
    gate = disk.backend.shut("put")
    await store.save([9] * 8, lab.kv(8))  # its copy waits, and those of the next save behind it
    await store.save(tokens[:8], lab.kv(8))
    (name,) = set(cpu.backend.objects) - {store.contents(CPU)[0].name()}
    if how == "unreachable":
        cpu.backend.fail = lambda call, asked: call == "get" and asked == name
    elif how == "vanished":
        del cpu.backend.objects[name]
    else:
        cpu.backend.objects[name] = b"not a blob"
    gate.set()
    await store.drain()
    assert name not in disk.backend.objects
    assert store.lookup(tokens[:8])[DISK] == 0


async def test_what_vanished_from_its_tier_fails_a_job_by_name(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(disk)
    await store.save(tokens, lab.smooth(20))
    name = store.contents(DISK)[0].name()
    del disk.backend.objects[name]
    store.start_compress("c", "zstd", DISK, None)
    await store.drain()
    job = store.job("c")
    assert job.status == "failed"
    assert name in job.error
    assert "does not have it any more" in job.error


async def test_a_job_says_what_was_put_into_another_method_before_its_turn(lab, tokens):
    store = lab.store(lab.tier(CPU))
    await store.save(tokens, lab.smooth(20))
    store.start_compress("a", "zstd", CPU, None)
    await store.drain()
    store.start_decompress("b", "zstd", CPU, None)
    store.start_compress("c", "fp8", CPU, None)
    await store.drain()
    store.start_compress("d", "zstd", CPU, None)
    await store.drain()
    store.start_compress("e", "fp8", CPU, None)  # planned first, carried out first
    store.start_decompress("f", "zstd", CPU, None)
    await store.drain()
    job = store.job("f")
    assert (job.status, job.tokens_done) == ("done", 0)
    assert job.note == "3 of 3 chunks were put into another method before their turn"
    assert store.stats()["tiers"][CPU]["codecs"] == {"fp8": 3}


async def test_a_move_says_what_left_before_its_turn(lab, tokens):
    store = lab.store(lab.tier(CPU), lab.tier(DISK), placement="demote")
    await store.save(tokens, lab.kv(20))
    store.start_move("first", CPU, "", DISK, tokens, copy=False)
    store.start_move("second", CPU, "", DISK, tokens, copy=False)
    await store.drain()
    assert store.job("first").note is None
    job = store.job("second")
    assert (job.status, job.tokens_done) == ("done", 0)
    assert job.note == "3 of 3 chunks left the location before their turn"


async def test_a_destination_that_loses_what_it_took_fails_the_move(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(lab.tier(CPU), disk, placement="demote")
    await store.save(tokens, lab.kv(20))
    disk.backend.get = lambda name: None
    store.start_move("m", CPU, "", DISK, tokens, copy=False)
    await store.drain()
    job = store.job("m")
    assert job.status == "failed"
    assert "lost the chunk" in job.error
    assert store.lookup(tokens) == {CPU: 20, DISK: 0}


@pytest.mark.parametrize("method", ["naive", "zstd"])
async def test_what_another_instance_wrote_is_learnt_when_a_job_reads_it(lab, tokens, method):
    """A save that finds chunks in a shared tier knows nothing of how they are written."""
    remote = lab.tier(REMOTE, shared=True)
    first = lab.store(remote, store_codec=method)
    await first.save(tokens, lab.smooth(20))
    second = type(lab)().store(lab.tier(REMOTE, shared=True, backend=remote.backend))
    assert (await second.save(tokens, lab.smooth(20))).num_tokens == 0
    assert second.stats()["tiers"][REMOTE]["codecs"] == {"unknown": 3}
    writes = remote.backend.count("put")
    second.start_compress("c", method, REMOTE, None)
    await second.drain()
    assert second.job("c").tokens_done == 20
    assert second.stats()["tiers"][REMOTE]["codecs"] == {method: 3}
    assert remote.backend.count("put") == writes, "it was so already"
    await second.close()


async def test_a_write_that_waits_for_doubtful_bytes_clears_them_first(lab, tokens):
    disk = lab.tier(DISK)
    store = lab.store(disk)
    disk.backend.fail = failing("put", "delete")
    result = await store.save(tokens[:8], lab.kv(8))
    assert result.errors
    disk.backend.fail = failing()
    assert (await store.save(tokens[:8], lab.kv(8))).num_tokens == 8
    assert disk.backend.count("delete") == 2
    lab.check(store)


async def test_a_tier_that_cannot_be_listed_at_start_is_empty(lab, tokens):
    disk = lab.tier(DISK, persistent=True)
    disk.backend.fail = failing("entries")
    store = lab.store(disk)
    await store.open()
    assert store.contents(DISK) == []
    with pytest.raises(NotFoundError):
        store.pin(DISK, tokens)


@pytest.mark.parametrize("damaged", [False, True])
async def test_what_cannot_be_read_at_start_is_not_served_and_keeps_its_room(lab, damaged):
    """Else a tier that was full would hold more than its capacity after the next save."""
    disk = lab.tier(DISK, persistent=True)
    store = lab.store(disk)
    prompts = [[value] * 8 for value in range(4)]
    for prompt in prompts[:3]:
        await store.save(prompt, lab.kv(8))
    names = sorted(disk.backend.objects)
    if damaged:
        disk.backend.objects[names[0]] = disk.backend.objects[names[0]][:-1] + b"!!"
        disk.backend.fail = lambda call, name: call == "delete" and name == names[0]
    else:
        disk.backend.fail = lambda call, name: call == "get" and name == names[0]
    room = sum(map(len, disk.backend.objects.values()))
    other = type(lab)()
    again = other.store(other.tier(DISK, room, persistent=True, backend=disk.backend))
    await again.open()
    assert {key.name() for key in again.contents(DISK)} == set(names[1:])
    assert again.stats()["tiers"][DISK]["used_bytes"] == room
    disk.backend.fail = failing()
    disk.backend.peak = 0
    assert (await again.save(prompts[3], other.kv(8))).num_tokens == 8
    assert disk.backend.peak <= room
    other.check(again)
    await again.close()


@pytest.mark.parametrize("how", ["unreachable", "vanished"])
async def test_an_evicted_chunk_that_cannot_be_read_is_dropped_and_makes_room(lab, tokens, how):
    cpu, disk = lab.tier(CPU, lab.blob_bytes(None)), lab.tier(DISK)
    store = lab.store(cpu, disk, placement="demote")
    await store.save(tokens[:8], lab.kv(8))
    (name,) = cpu.backend.objects
    if how == "unreachable":
        cpu.backend.fail = lambda call, asked: call == "get" and asked == name
    else:
        del cpu.backend.objects[name]
    assert (await store.save([1] * 8, lab.kv(8, seed=1))).num_tokens == 8
    assert store.lookup(tokens[:8]) == {CPU: 0, DISK: 0}
    assert store.lookup([1] * 8) == {CPU: 8, DISK: 0}
    assert store.stats()["tiers"][CPU]["demotions"] == 0
    cpu.backend.fail = failing()
    lab.check(store)


async def test_what_became_damaged_by_a_failed_replacement_is_found_by_the_next_read(lab, tokens):
    """The backend wrote something else than it was given, and said that it failed."""
    disk = lab.tier(DISK)
    store = lab.store(disk)
    await store.save(tokens[:8], lab.smooth(8))
    (name,) = disk.backend.objects
    put = disk.backend.put

    def tear(name, blob):
        put(name, b"torn" + bytes(blob)[4:])
        raise OSError("torn")

    disk.backend.put = tear
    store.start_compress("c", "zstd", DISK, None)
    await store.drain()
    assert store.job("c").status == "failed"
    disk.backend.put = put
    assert (await store.load_prefix(tokens[:8])).num_tokens == 0
    assert store.stats()["tiers"][DISK]["damaged"] == 1
    assert name not in disk.backend.objects
    assert (await store.save(tokens[:8], lab.smooth(8))).num_tokens == 8
    lab.check(store)
