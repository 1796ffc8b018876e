"""Processes that are killed with SIGKILL in the middle of transfers."""

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from lmcache_kit.builtin.transports.options import ShmOptions
from lmcache_kit.builtin.transports.segments import SegmentFolder
from lmcache_kit.builtin.transports.shared_memory import ShmTransport
from lmcache_kit.builtin.transports.zeromq import ZmqTransport
from lmcache_kit.errors import UnavailableError

NODE = Path(__file__).with_name("node.py")
LONG = 60.0
SIZE = 4_000_000


@pytest.fixture
def folder():
    folder = Path(tempfile.mkdtemp(prefix="lmcache-kit-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def spawn(folder, start_script):  # in this order: the processes end before the folder is removed
    """A function that starts a node; its arguments are what it does, the address, and what more it wants."""
    return lambda action, address, *more: start_script(NODE, action, address, folder, *more)


@pytest.fixture(params=["zmq", "shm"])
def kind(request):
    return request.param


def make(kind, folder):
    return ShmTransport(ShmOptions(directory=str(folder))) if kind == "shm" else ZmqTransport()


def any_address(kind):
    return "shm://*" if kind == "shm" else "tcp://127.0.0.1:0"


async def echo(frames):
    return frames


async def test_a_listener_killed_in_the_middle_of_transfers_and_started_again(kind, folder, spawn):
    process, address = spawn("listen", any_address(kind))
    channel = await make(kind, folder).connect(address)
    data = os.urandom(SIZE)
    for round_number in range(4):
        answer = await channel.request([data], timeout=LONG)
        assert bytes(answer[0]) == data
        hanging = asyncio.create_task(channel.request([b"hang"], timeout=LONG))
        await asyncio.sleep(0.05)
        transfers = [asyncio.create_task(channel.request([data], timeout=LONG)) for _ in range(6)]
        await asyncio.sleep(0.004 * round_number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Nobody waits for the deadline, and whoever was answered before the kill has whole data.
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(LONG / 2):
                await hanging
        process, again = spawn("listen", address)
        assert again == address
        for result in await asyncio.gather(*transfers, return_exceptions=True):
            assert isinstance(result, UnavailableError) or bytes(result[0]) == data
    assert bytes((await channel.request([data], timeout=LONG))[0]) == data
    await channel.close()
    process.kill()
    process.wait()
    SegmentFolder(folder).close()  # the next use of the folder
    assert list(folder.iterdir()) == []


async def test_requesters_killed_in_the_middle_of_transfers(kind, folder, spawn):
    listener = await make(kind, folder).listen(any_address(kind), echo)
    for round_number in range(3):
        process, line = await asyncio.to_thread(spawn, "ask", listener.address, str(SIZE))
        assert line == "exchanged"
        await asyncio.sleep(0.01 * round_number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        channel = await make(kind, folder).connect(listener.address)
        answer = await channel.request([b"still here", bytes(SIZE)], timeout=LONG)
        assert bytes(answer[0]) == b"still here"
        await channel.close()
    await listener.close()
    SegmentFolder(folder).close()
    assert list(folder.iterdir()) == []


async def test_both_sides_killed(folder, spawn):
    listening, address = spawn("listen", "shm://both")
    asking, _ = spawn("ask", address, str(SIZE))
    listening.send_signal(signal.SIGKILL)
    asking.send_signal(signal.SIGKILL)
    listening.wait()
    asking.wait()
    listener = await make("shm", folder).listen("shm://both", echo)  # the name is free again
    channel = await make("shm", folder).connect("shm://both")
    assert bytes((await channel.request([bytes(SIZE)], timeout=LONG))[0]) == bytes(SIZE)
    assert [entry.name for entry in folder.iterdir() if entry.name.endswith(".seg")] == []
    await channel.close()
    await listener.close()
    assert list(folder.iterdir()) == []


async def test_a_peer_that_is_stopped_and_goes_on(kind, folder, spawn):
    process, address = spawn("listen", any_address(kind))
    channel = await make(kind, folder).connect(address)
    await channel.request([b"x"], timeout=LONG)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UnavailableError, match="did not answer"):
        await channel.request([bytes(SIZE)], timeout=0.3)
    process.send_signal(signal.SIGCONT)
    answer = await channel.request([b"y" * SIZE], timeout=LONG)
    assert bytes(answer[0]) == b"y" * SIZE
    await channel.close()
