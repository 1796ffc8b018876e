"""One case per built-in transport; every test of the behavioural suite runs over all of them."""

import asyncio
import itertools
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from lmcache_kit.builtin.transports.inproc import InprocTransport
from lmcache_kit.builtin.transports.options import InprocOptions, ShmOptions, ZmqOptions
from lmcache_kit.builtin.transports.shared_memory import ShmTransport
from lmcache_kit.builtin.transports.zeromq import ZmqTransport


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Case:
    """A transport, addresses for it, and everything opened through it, to be closed at the end."""

    names = itertools.count()

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.opened = []

    def transport(self, **options):
        if self.kind == "shm":
            return ShmTransport(ShmOptions(directory=str(self.folder), **options))
        return {
            "inproc": lambda: InprocTransport(InprocOptions(**options)),
            "zmq": lambda: ZmqTransport(ZmqOptions(**options)),
        }[self.kind]()

    @property
    def any_address(self):
        return {"inproc": "inproc://*", "zmq": "tcp://127.0.0.1:0", "shm": "shm://*"}[self.kind]

    def free_address(self):
        """An address that nobody listens at and that can be listened at."""
        if self.kind == "zmq":
            return f"tcp://127.0.0.1:{free_port()}"
        return f"{self.kind}://free-{next(self.names)}"

    async def listen(self, handler, address=None, **options):
        listener = await self.transport(**options).listen(address or self.any_address, handler)
        self.opened.append(listener)
        return listener

    async def connect(self, address, **options):
        channel = await self.transport(**options).connect(address)
        self.opened.append(channel)
        return channel

    async def pair(self, handler, **options):
        listener = await self.listen(handler, **options)
        return listener, await self.connect(listener.address, **options)

    async def close(self):
        for opened in reversed(self.opened):
            await opened.close()


@pytest.fixture
def segment_folder():
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="lmcache-kit-test-", dir=base))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["inproc", "zmq", "shm"])
async def case(request, segment_folder):
    case = Case(request.param, segment_folder)
    yield case
    await case.close()
    for _ in range(500):
        if len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.01)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    assert list(segment_folder.iterdir()) == []
