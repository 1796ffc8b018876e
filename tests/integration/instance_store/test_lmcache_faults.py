"""Faults of LMCache 0.5.6 that concern an instance's storage (docs/explanation/faults.md)."""

import pickle
import pickletools

import numpy as np
import pytest

from lmcache_kit.errors import BlobError, ConflictError
from lmcache_kit.kv import BlobHeader, pack_blob, unpack_blob

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
TOKENS = list(range(40))
METHODS = ["zstd", "fp8"]


def same(kv, other):
    return np.array_equal(kv.data.view(np.uint8), other.data.view(np.uint8))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "location"), [("memory", CPU), ("disk", DISK)])
async def test_fault_5_compressing_twice_and_decompressing_what_is_not_compressed(lab, kind, location, method):
    store = lab.store(lab.tier(kind))
    await store.save(TOKENS, lab.kv(40))
    with pytest.raises(ConflictError) as caught:
        store.start_decompress("early", method, location, TOKENS)
    assert "3 in 'naive'" in caught.value.detail
    sizes = []
    for event in ("first", "second"):
        store.start_compress(event, method, location, TOKENS)
        await store.drain()
        job = store.job(event)
        assert (job.status, job.num_tokens, job.tokens_done) == ("done", 40, 40)
        sizes.append(store.stats()["tiers"][location]["used_bytes"])
    assert sizes[0] == sizes[1]
    assert store.job("second").note == f"3 of 3 chunks already in {method!r}: nothing to do for them"
    assert store.stats()["tiers"][location]["pinned"] == 0
    assert await store.clear(location) == 40, "nothing stays pinned"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "location"), [("memory", CPU), ("disk", DISK)])
async def test_fault_6_a_compressed_chunk_is_read_and_compressing_on_disk_keeps_the_data(lab, kind, location, method):
    store = lab.store(lab.tier(kind))
    kv = lab.kv(40)
    await store.save(TOKENS, kv)
    store.start_compress("c", method, location, TOKENS)
    await store.drain()
    assert store.job("c").status == "done"
    assert store.lookup(TOKENS) == {location: 40}
    loaded = await store.load_prefix(TOKENS)
    assert loaded.num_tokens == 40
    assert {hit.codec for hit in loaded.hits} == {method}
    assert np.allclose(loaded.kv.data.astype(np.float32), kv.data.astype(np.float32), atol=0.3)
    if method == "zstd":
        assert same(loaded.kv, kv)
    store.start_decompress("d", method, location, TOKENS)
    await store.drain()
    assert same((await store.load_prefix(TOKENS)).kv, loaded.kv)


async def test_fault_7_compressed_sizes_count_and_decompressed_chunks_can_be_evicted(lab):
    store = lab.store(lab.tier("memory", 12_000))
    kv = lab.kv(40)
    await store.save(TOKENS, kv)
    raw = store.stats()["tiers"][CPU]["used_bytes"]
    store.start_compress("c", "zstd", CPU, TOKENS)
    await store.drain()
    packed = store.stats()["tiers"][CPU]["used_bytes"]
    assert packed == store.job("c").bytes_after < raw == store.job("c").bytes_before
    other = [9000 + token for token in range(48)]
    await store.save(other, lab.kv(48, 1))
    assert store.lookup(TOKENS) == {CPU: 40}, "the room that compression made is there for others"
    store.start_decompress("d", "zstd", CPU, TOKENS)
    await store.drain()
    assert store.job("d").status == "done"
    assert store.stats()["tiers"][CPU]["used_bytes"] <= 12_000
    for seed in range(2, 5):
        await store.save([10_000 * seed + token for token in range(48)], lab.kv(48, seed))
    assert store.lookup(TOKENS) == {CPU: 0}
    assert store.stats()["tiers"][CPU]["used_bytes"] <= 12_000


class Bomb:
    ran = False

    def __reduce__(self):
        return (setattr, (Bomb, "ran", True))


async def test_fault_12_a_hostile_container_runs_no_code(lab):
    hostile = pickle.dumps(Bomb())
    assert any(opcode.name == "REDUCE" for opcode, _, _ in pickletools.genops(hostile))
    store = lab.store(lab.tier("memory"), lab.tier("disk"))
    await store.save(TOKENS, lab.kv(40))
    key = store.contents(CPU)[0]
    store._io.tiers[0].backend.put(key.name(), hostile)
    for path in lab.files():
        path.write_bytes(hostile)
    assert (await store.load_prefix(TOKENS)).num_tokens == 0
    with pytest.raises(BlobError):
        await store.receive(CPU, hostile)
    for method in ("naive", "zstd", "fp8"):
        blob = pack_blob(BlobHeader(method, 1, lab.layout, 16, key), hostile)
        assert unpack_blob(blob).header.codec == method
        with pytest.raises(BlobError):
            store.codecs.decode(blob)
    await store.close()
    again = lab.store(lab.tier("disk"))
    await again.open()
    assert again.contents(DISK) == []
    assert not Bomb.ran
