"""Any list of frames arrives as it was sent, in both directions, over every transport."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmcache_kit.builtin.transports.inproc import InprocTransport
from lmcache_kit.builtin.transports.options import ShmOptions
from lmcache_kit.builtin.transports.shared_memory import ShmTransport
from lmcache_kit.builtin.transports.zeromq import ZmqTransport
from lmcache_kit.errors import InvalidRequestError, TransportError

small = st.binary(max_size=200)
# Sizes around the places where a transport changes its mind, without drawing every byte.
sized = st.builds(
    lambda size, seed: (seed * (size // len(seed) + 1))[:size],
    st.sampled_from([63, 64, 65, 999, 1000, 1001, 1023, 1024, 65_535, 65_536, 65_537, 200_001]),
    st.binary(min_size=1, max_size=40),
)
wrapped = st.sampled_from([bytes, bytearray, memoryview, lambda data: memoryview(b"x" + data + b"y")[1:-1]])
frame_lists = st.lists(st.tuples(wrapped, small | sized), max_size=40)


@pytest.fixture(scope="module")
def segment_folder():
    folder = Path(tempfile.mkdtemp(prefix="lmcache-kit-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["inproc", "zmq", "shm", "shm everything"])
def exchange(request, segment_folder):
    """A function that sends frames to an echo that turns their order round, on a loop of its own."""
    transport, address = {
        "inproc": lambda: (InprocTransport(), "inproc://*"),
        "zmq": lambda: (ZmqTransport(), "tcp://127.0.0.1:0"),
        "shm": lambda: (ShmTransport(ShmOptions(directory=str(segment_folder), threshold_bytes=1000)), "shm://*"),
        "shm everything": lambda: (
            ShmTransport(ShmOptions(directory=str(segment_folder), threshold_bytes=0)),
            "shm://*",
        ),
    }[request.param]()

    async def turn_round(frames):
        return list(reversed(frames))

    async def start():
        listener = await transport.listen(address, turn_round)
        return listener, await transport.connect(listener.address)

    async def stop(listener, channel):
        await channel.close()
        await listener.close()

    async def ask(frames):
        return [bytes(frame) for frame in await channel.request(frames, timeout=60)]

    with asyncio.Runner() as runner:
        listener, channel = runner.run(start())
        yield lambda frames: runner.run(ask(frames))
        runner.run(stop(listener, channel))
    assert list(segment_folder.iterdir()) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=frame_lists)
@example(frames=[(bytes, b"")] * 300)
@example(frames=[(bytes, bytes([number % 256]) * 1001) for number in range(600)])
def test_frames_arrive_whole_and_in_order(exchange, frames):
    sent = [wrap(data) for wrap, data in frames]
    assert exchange(sent) == [data for _, data in reversed(frames)]
    assert [bytes(frame) for frame in sent] == [data for _, data in frames]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.lists(st.binary(max_size=80), max_size=5))
def test_no_message_on_the_socket_below_makes_the_shared_memory_transport_do_anything_but_refuse(
    garbage_target, message
):
    garbage_target(message)


@pytest.fixture(scope="module")
def garbage_target(segment_folder):
    transport = ShmTransport(ShmOptions(directory=str(segment_folder)))
    seen = []

    async def remember(frames):
        seen.append(list(frames))
        return []

    async def start():
        return await transport.listen("shm://garbage", remember), await transport.connect("shm://garbage")

    async def check(message):
        seen.clear()
        try:
            await channel._inner.request(message, timeout=60)
        except TransportError:
            assert seen == []
        else:  # by chance it was a message that keeps all its frames on the socket
            assert seen == [message[1:]]

    async def stop():
        await channel.close()
        await listener.close()

    with asyncio.Runner() as runner:
        listener, channel = runner.run(start())
        yield lambda message: runner.run(check(message))
        runner.run(stop())


@settings(max_examples=200)
@given(header=st.binary(max_size=24) | st.binary(min_size=11, max_size=11).map(lambda rest: b"LKT1" + rest + b"\0"))
def test_a_header_is_read_or_refused(header):
    from lmcache_kit.builtin.transports.zmq_wire import pack_header, unpack_header

    try:
        kind, number = unpack_header(header)
    except InvalidRequestError:
        return
    assert pack_header(kind, number) == header
