"""What is on disk is found again, whole, after a restart, a crash and damage."""

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmcache_kit.kv import KVLayout, peek_header

DISK = "LocalDiskBackend"
TOKENS = list(range(500, 572))


def same(kv, other):
    return np.array_equal(kv.data.view(np.uint8), other.data.view(np.uint8))


async def test_a_restart_finds_everything(lab):
    kv = lab.kv(72)
    first = lab.store(lab.tier("memory"), lab.tier("disk"))
    await first.open()
    await first.save(TOKENS, kv)
    first.start_compress("c", "zstd", DISK, TOKENS[:32])
    await first.close()
    used = first.stats()["tiers"][DISK]["used_bytes"]
    lab.changes.clear()
    again = lab.store(lab.tier("memory"), lab.tier("disk"))
    await again.open()
    assert [(change.op, change.location) for change in lab.changes] == [("admit", DISK)] * 5
    assert again.lookup(TOKENS) == {"LocalCPUBackend": 0, DISK: 72}
    stats = again.stats()["tiers"][DISK]
    assert (stats["used_bytes"], stats["recovered"], stats["codecs"]) == (used, 5, {"zstd": 2, "naive": 3})
    assert used == sum(path.stat().st_size for path in lab.files())
    assert same((await again.load_prefix(TOKENS)).kv, kv)
    assert (await again.save(TOKENS, kv)).num_tokens == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: b"",
        lambda blob: blob[: len(blob) // 2],
        lambda blob: blob + b"more",
        lambda blob: b"\x80\x05pickle",
        lambda blob: bytes([blob[0] ^ 1]) + blob[1:],
    ],
)
async def test_damage_is_dropped_and_reported_at_start(lab, damage, caplog):
    first = lab.store(lab.tier("disk"))
    await first.save(TOKENS, lab.kv(72))
    await first.close()
    victim = lab.files()[2]
    victim.write_bytes(damage(victim.read_bytes()))
    lab.changes.clear()
    again = lab.store(lab.tier("disk"))
    await again.open()
    assert not victim.exists()
    assert victim.stem in caplog.text
    assert len(again.contents(DISK)) == 4
    assert again.stats()["tiers"][DISK]["damaged"] == 1


async def test_a_payload_that_rotted_is_found_when_it_is_read(lab):
    kv = lab.kv(72)
    first = lab.store(lab.tier("disk"))
    await first.save(TOKENS, kv)
    third = first.contents(DISK)[2].name()
    await first.close()
    (path,) = [path for path in lab.files() if path.stem == third]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = lab.store(lab.tier("disk"))
    await again.open()
    assert again.lookup(TOKENS) == {DISK: 72}
    assert (await again.load_prefix(TOKENS)).num_tokens == 32
    assert not path.exists()
    assert (await again.save(TOKENS, kv)).num_tokens == 16
    assert same((await again.load_prefix(TOKENS)).kv, kv)


@pytest.mark.parametrize("other", [{"model": "other"}, {"layout": KVLayout(2, 2, 16, "float16")}])
async def test_another_models_chunks_are_not_kept(lab, other):
    first = lab.store(lab.tier("disk"))
    await first.save(TOKENS, lab.kv(72))
    await first.close()
    lab.changes.clear()
    again = lab.store(lab.tier("disk"), **other)
    await again.open()
    assert (again.contents(DISK), lab.changes, lab.files()) == ([], [], [])


async def test_a_smaller_capacity_is_kept_from_the_start(lab):
    first = lab.store(lab.tier("disk"))
    await first.save(TOKENS, lab.kv(72))
    await first.close()
    lab.changes.clear()
    capacity = sum(path.stat().st_size for path in lab.files()) - 100
    again = lab.store(lab.tier("disk", capacity))
    await again.open()
    assert len(lab.changes) == len(again.contents(DISK)) == len(lab.files()) < 5
    assert {change.op for change in lab.changes} == {"admit"}
    assert sum(path.stat().st_size for path in lab.files()) <= capacity
    assert again.stats()["tiers"][DISK]["used_bytes"] <= capacity


CHILD = """
import asyncio, importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("store_lab", {conftest!r})
module = importlib.util.module_from_spec(spec)
sys.modules["store_lab"] = module
spec.loader.exec_module(module)

async def main():
    lab = module.Lab(pathlib.Path({data!r}))
    store = lab.store(lab.tier("disk", 60000))
    await store.open()
    print("ready", flush=True)
    number = 0
    while True:
        seed = number % 7
        await store.save([1000 * seed + token for token in range(72)], lab.kv(72, seed))
        store.start_compress(f"c{{number}}", "zstd", "LocalDiskBackend", None)
        await store.drain()
        if number % 3 == 2:
            store.start_decompress(f"d{{number}}", "zstd", "LocalDiskBackend", None)
            await store.drain()
        number += 1

asyncio.run(main())
"""


async def test_after_kill_9_every_chunk_is_the_old_or_the_new_one_whole(lab):
    conftest = str(Path(__file__).with_name("conftest.py"))
    code = CHILD.format(conftest=conftest, data=str(lab.folder))
    rng = random.Random(0)
    for round_number in range(4):
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
        try:
            assert await child.stdout.readline() == b"ready\n"
            # Not a deadline: how far the child gets before it is killed does not matter to what is checked.
            await asyncio.sleep(rng.uniform(0.02, 0.4))
        finally:
            if child.returncode is None:
                child.kill()
            status = await child.wait()
        assert status == -signal.SIGKILL, f"round {round_number}: the child ended by itself"
        store = lab.store(lab.tier("disk", 60000))
        await store.open()
        stats = store.stats()["tiers"][DISK]
        assert stats["damaged"] == 0
        assert stats["used_bytes"] == sum(path.stat().st_size for path in lab.files()) <= 60000
        assert {peek_header(path.read_bytes()).codec for path in lab.files()} <= {"naive", "zstd"}
        total = 0
        for seed in range(7):
            tokens = [1000 * seed + token for token in range(72)]
            loaded = await store.load_prefix(tokens)
            assert loaded.num_tokens == store.lookup(tokens)[DISK]
            total += loaded.num_tokens
            if loaded.kv is not None:
                assert same(loaded.kv, lab.kv(72, seed).tokens(0, loaded.num_tokens))
        assert store.stats()["tiers"][DISK]["damaged"] == 0
        await store.close()
    assert total > 0
