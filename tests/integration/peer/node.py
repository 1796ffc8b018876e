"""A process with a real store and a peer server, for the tests beside it. Usage: node.py ADDRESS SHM_FOLDER DATA_DIR"""

import asyncio
import sys
from pathlib import Path

from lmcache_kit.builtin.transports.options import ShmOptions
from lmcache_kit.builtin.transports.shared_memory import ShmTransport
from lmcache_kit.builtin.transports.zeromq import ZmqTransport
from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin, StoragePlugin
from lmcache_kit.contracts.storage import StorageContext
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.peer import PeerServer
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.store import KVStore
from lmcache_kit.kv import ChunkHasher, HashSpec, KVLayout
from lmcache_kit.plugins import registry

MODEL = "model-a"
LAYOUT = KVLayout(4, 2, 64, "float32")
CHUNK = 512


def make_tier(name, data_dir):
    plugins = registry()
    record = plugins.get(StoragePlugin, name)
    policy = plugins.get(EvictionPlugin, "lru")
    context = StorageContext(instance_id="x", location=record.location, capacity_bytes=None, data_dir=data_dir)
    return Tier(
        location=record.location,
        backend=record.factory(plugins.options(record), context),
        capacity_bytes=None,
        policy=policy.factory(plugins.options(policy), None),
        inline="inline" in record.capabilities,
        persistent="persistent" in record.capabilities,
    )


def make_store(data_dir, *, peers=None, model=MODEL):
    placement = registry().get(PlacementPlugin, "broadcast")
    return KVStore(
        model=model,
        layout=LAYOUT,
        hasher=ChunkHasher(HashSpec(chunk_size=CHUNK)),
        tiers=[make_tier("memory", data_dir), make_tier("disk", data_dir)],
        placement=placement.factory(registry().options(placement)),
        codecs=CodecSet(),
        clock=WallClock(),
        on_change=lambda change: None,
        peers=peers,
    )


async def main():
    address, folder, data_dir = sys.argv[1:]
    store = make_store(Path(data_dir))
    await store.open()
    transport = ShmTransport(ShmOptions(directory=folder)) if address.startswith("shm") else ZmqTransport()
    server = PeerServer()
    await server.start(address, transport, store)
    print(server.address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
