"""Every built-in eviction policy under every built-in placement policy, on real backends."""

import numpy as np
import pytest

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"


@pytest.mark.parametrize("placement", ["broadcast", "write_back", "demote"])
@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "mru", "arc"])
async def test_bytes_stay_right_and_capacities_hold(lab, policy, placement):
    store = lab.store(lab.tier("memory", 15_000, policy), lab.tier("disk", 40_000, policy), placement=placement)
    await store.open()
    streams = {seed: [1000 * seed + token for token in range(40)] for seed in range(8)}
    order = np.random.default_rng(0).zipf(1.5, 60) % 8
    loaded_tokens = 0
    for number, seed in enumerate(int(seed) for seed in order):
        loaded = await store.load_prefix(streams[seed])
        loaded_tokens += loaded.num_tokens
        if loaded.kv is not None:
            want = lab.kv(40, seed).tokens(0, loaded.num_tokens)
            assert np.array_equal(loaded.kv.data.view(np.uint8), want.data.view(np.uint8))
        result = await store.save(streams[seed], lab.kv(40, seed))
        assert result.num_tokens + result.held_tokens == 40
        if number % 10 == 5:
            store.start_compress(str(number), "zstd", DISK if number % 20 == 5 and placement != "demote" else CPU, None)
    await store.drain()
    assert loaded_tokens > 0
    held = {CPU: set(), DISK: set()}
    for change in lab.changes:
        names = held[change.location]
        assert (change.op == "evict") == (change.key in names)
        names.symmetric_difference_update({change.key})
    for location, capacity in ((CPU, 15_000), (DISK, 40_000)):
        stats = store.stats()["tiers"][location]
        assert stats["used_bytes"] <= capacity
        assert set(store.contents(location)) == held[location]
        assert stats["damaged"] == stats["missing"] == stats["unavailable"] == 0
    assert sum(path.stat().st_size for path in lab.files()) == store.stats()["tiers"][DISK]["used_bytes"]
    assert store.stats()["jobs"]["failed"] == 0
