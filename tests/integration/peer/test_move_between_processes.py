"""Chunks of a real store go to another process, which may be killed on the way."""

import asyncio
import importlib.util
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lmcache_kit.builtin.transports.options import ShmOptions, ZmqOptions
from lmcache_kit.builtin.transports.segments import SegmentFolder
from lmcache_kit.builtin.transports.shared_memory import ShmTransport
from lmcache_kit.builtin.transports.zeromq import ZmqTransport
from lmcache_kit.errors import ConflictError, NotFoundError
from lmcache_kit.instance.peer import PeerClient
from lmcache_kit.kv import ChunkKey, KVTensor, unpack_blob

NODE = Path(__file__).with_name("node.py")
LONG = 60.0
CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"

spec = importlib.util.spec_from_file_location("peer_node", NODE)
node = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node)


@pytest.fixture
def folder():
    folder = Path(tempfile.mkdtemp(prefix="lmcache-kit-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield folder
    SegmentFolder(folder).close()
    left = [entry.name for entry in folder.iterdir()]
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def spawn(folder, tmp_path, start_script):  # in this order: the processes end before the folder is looked at
    """A function that starts an instance's peer server at an address."""
    return lambda address: start_script(NODE, address, folder, tmp_path / "peer")


@pytest.fixture(params=["tcp://127.0.0.1:0", "shm://*"])
def address(request):
    return request.param


@pytest.fixture
async def client(folder):
    shm = ShmTransport(ShmOptions(directory=str(folder), connect_seconds=2.0))
    client = PeerClient("localhost:1", {"shm": shm, "tcp": ZmqTransport(ZmqOptions(connect_seconds=2.0))})
    yield client
    await client.close()


@pytest.fixture
async def store(tmp_path, client):
    store = node.make_store(tmp_path / "own", peers=client)
    await store.open()
    yield store
    await store.close()


def some_kv(tokens):
    kv = KVTensor.empty(node.LAYOUT, tokens)
    kv.data[:] = np.random.default_rng(tokens).standard_normal(kv.data.shape, dtype=np.float32)
    return kv


async def finished(store, event_id):
    for _ in range(6000):
        job = store.job(event_id)
        if job.status in ("done", "failed"):
            return job
        await asyncio.sleep(0.01)
    raise AssertionError(job)


async def test_a_copied_prefix_is_the_same_bytes_at_the_peer(spawn, address, store, client):
    _, url = spawn(address)
    tokens = list(range(3 * node.CHUNK + 100))
    kv = some_kv(len(tokens))
    await store.save(tokens, kv)
    job = store.start_move("copy", CPU, url, DISK, tokens, copy=True)
    assert job.num_tokens == len(tokens)
    job = await finished(store, "copy")
    assert (job.status, job.tokens_done) == ("done", len(tokens)), job
    keys = await client.contents(url, DISK)
    assert len(keys) == 4
    parts = []
    for hash_ in store.hasher.hashes(tokens):
        blob = unpack_blob(await client.fetch(url, DISK, ChunkKey(node.MODEL, hash_), timeout=LONG))
        parts.append(KVTensor.from_bytes(blob.payload, blob.header.layout, blob.header.num_tokens))
    assert KVTensor.concat(parts).data.tobytes() == kv.data.tobytes()
    assert store.lookup(tokens)[CPU] == len(tokens)
    assert await client.contents(url, CPU) == []
    assert await client.ping(url) == (node.MODEL, [CPU, DISK])


async def test_refusals_of_the_peer_reach_the_job(spawn, address, store, client):
    _, url = spawn(address)
    tokens = list(range(10))
    await store.save(tokens, some_kv(10))
    store.start_move("m", CPU, url, "NoSuchBackend", tokens, copy=False)
    job = await finished(store, "m")
    assert job.status == "failed"
    assert "NoSuchBackend" in job.error
    assert store.lookup(tokens)[CPU] == 10  # a move that failed keeps the source
    blob = store.codecs.encode(some_kv(3), ChunkKey("model-b", 1), "naive")
    with pytest.raises(ConflictError, match="model-b"):
        await client.send(url, CPU, blob, timeout=LONG)
    with pytest.raises(NotFoundError):
        await client.contents(url, "NoSuchBackend")


async def test_a_peer_killed_in_the_middle_of_a_move_and_started_again(spawn, address, store, client):
    process, url = spawn(address)
    tokens = list(range(24 * node.CHUNK))
    await store.save(tokens, some_kv(len(tokens)))
    store.start_move("first", CPU, url, DISK, tokens, copy=False)
    for _ in range(3000):
        if store.job("first").tokens_done > 0:
            break
        await asyncio.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    job = await finished(store, "first")
    process, again = spawn(url)
    assert again == url
    if job.status == "failed":  # unless everything had arrived before the kill
        assert url in job.error
        assert job.tokens_done < len(tokens)
        store.start_move("second", CPU, url, DISK, tokens, copy=False)
        job = await finished(store, "second")
    assert job.status == "done", job
    # Its disk kept what had arrived before the kill, whole.
    for hash_ in store.hasher.hashes(tokens):
        assert unpack_blob(await client.fetch(url, DISK, ChunkKey(node.MODEL, hash_), timeout=LONG))
    assert store.lookup(tokens)[CPU] == 0
