"""A store without anything behind it, a peer server over it, and clients for it."""

import asyncio

import numpy as np
import pytest

from lmcache_kit.builtin.transports.inproc import InprocTransport
from lmcache_kit.errors import UnknownNameError
from lmcache_kit.instance.peer import PeerClient, PeerServer
from lmcache_kit.kv import BlobHeader, ChunkKey, KVLayout, pack_blob, unpack_blob

LAYOUT = KVLayout(2, 1, 4, "float16")


class FakeStore:
    model = "model-a"

    def __init__(self):
        self.held = {"LocalCPUBackend": {}, "LocalDiskBackend": {}}
        self.error = None
        self.gate = None

    def locations(self):
        return list(self.held)

    def tier(self, location):
        if location not in self.held:
            raise UnknownNameError("location", location, self.held)
        return self.held[location]

    async def receive(self, location, blob, *, move=""):
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            await self.gate.wait()
        header = unpack_blob(blob).header
        self.tier(location)[header.key] = bytes(blob)
        return header.num_tokens

    async def read(self, location, key):
        if self.error is not None:
            raise self.error
        return self.tier(location).get(key)

    def contents(self, location):
        return list(self.tier(location))


class Peers:
    """Everything that a test opens."""

    def __init__(self):
        self.opened = []

    async def serve(self, store, address="inproc://*", transport=None, **options):
        server = PeerServer(**options)
        await server.start(address, transport or InprocTransport(), store)
        self.opened.append(server)
        return server

    def client(self, own_url=None, transports=None, shaping=None, **more):
        client = PeerClient(own_url, transports, shaping, **more)
        self.opened.append(client)
        return client

    @staticmethod
    def blob(hash_=1, *, tokens=3, model="model-a", codec="naive", payload=None):
        rng = np.random.default_rng(hash_ & 0xFFFF)
        raw = rng.integers(0, 256, LAYOUT.nbytes(tokens), dtype=np.uint8).tobytes()
        header = BlobHeader(codec, 1, LAYOUT, tokens, ChunkKey(model, hash_))
        return pack_blob(header, raw if payload is None else payload)


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture
async def peers():
    peers = Peers()
    yield peers
    for opened in reversed(peers.opened):
        await opened.close()
    for _ in range(20):
        await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
