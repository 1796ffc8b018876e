"""The ZeroMQ sockets against peers that do not speak the protocol."""

import asyncio
import os
import socket
import struct

import pytest
import zmq
import zmq.asyncio

from lmcache_kit.builtin.transports.options import ZmqOptions
from lmcache_kit.builtin.transports.zeromq import ZmqTransport
from lmcache_kit.builtin.transports.zmq_wire import (
    ANSWER,
    REFUSAL,
    REQUEST,
    pack_header,
    pack_refusal,
    unpack_header,
    unpack_refusal,
)
from lmcache_kit.errors import ConfigError, InvalidRequestError, TransportError, UnavailableError

LONG = 30.0


async def echo(frames):
    return frames


@pytest.fixture
async def listener():
    listener = await ZmqTransport().listen("tcp://127.0.0.1:0", echo)
    yield listener
    await listener.close()


@pytest.fixture
async def raw_socket():
    """A function that makes a bare ZeroMQ socket of a type."""
    sockets = []

    def make(kind):
        sockets.append(zmq.asyncio.Context.instance().socket(kind))
        return sockets[-1]

    yield make
    for opened in sockets:
        opened.close(linger=0)


def test_the_header_is_16_bytes_as_documented():
    assert pack_header(REQUEST, 0x0102) == b"LKT1\x01\0\0\0\x02\x01\0\0\0\0\0\0"
    assert unpack_header(pack_header(REFUSAL, 2**64 - 1)) == (REFUSAL, 2**64 - 1)


@pytest.mark.parametrize("position", range(8))
def test_a_header_with_any_other_byte_in_front_of_the_number_is_refused(position):
    header = bytearray(pack_header(ANSWER, 7))
    for value in range(256):
        header[position] = value
        if bytes(header[:8]) in (b"LKT1\1\0\0\0", b"LKT1\2\0\0\0", b"LKT1\3\0\0\0"):
            continue
        with pytest.raises(InvalidRequestError):
            unpack_header(bytes(header))


@pytest.mark.parametrize("length", [0, 1, 15, 17, 1000])
def test_a_header_of_another_length_is_refused(length):
    with pytest.raises(InvalidRequestError):
        unpack_header(pack_header(REQUEST, 1).ljust(length, b"\0")[:length])


@pytest.mark.parametrize("frames", [[], [b""], [b"\xc1"], [b"\x92\x01\x02"], [b"\x92\xa1\xff\xc0"], [b"\x90"]])
def test_a_refusal_that_cannot_be_read_still_refuses(frames):
    assert unpack_refusal(frames) == ("no readable reason", None)


def test_a_refusal_is_cut_to_a_bounded_text():
    message, hint = unpack_refusal([pack_refusal("ü" * 10_000, "h" * 10_000)])
    assert message == "ü" * 2048
    assert hint == "h" * 4096


@pytest.mark.parametrize(
    "message",
    [
        [b""],
        [b"", b""],
        [b"x" * 5],
        [b"", pack_header(REQUEST, 1)],  # the envelope of a REQ socket
        [pack_header(ANSWER, 1), b"x"],
        [pack_header(REFUSAL, 1)],
        [pack_header(9, 1)],
        [os.urandom(100_000)],
        [pack_header(REQUEST, 1)[:15]],
        [b"" for _ in range(2000)],
        [pack_header(REQUEST, 1), *(b"" for _ in range(70_000))],
    ],
)
async def test_malformed_messages_do_not_disturb_the_listener(listener, raw_socket, message):
    hostile = raw_socket(zmq.DEALER)
    hostile.connect(listener.address)
    for _ in range(3):
        await hostile.send_multipart(message)
    channel = await ZmqTransport().connect(listener.address)
    for _ in range(3):
        assert [bytes(frame) for frame in await channel.request([b"x"], timeout=LONG)] == [b"x"]
    await channel.close()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", os.urandom(200), b"\xff" + b"\0" * 8 + b"\x7f", b""])
async def test_bytes_that_are_not_zeromq_do_not_disturb_the_listener(listener, data):
    port = int(listener.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(data)
        channel = await ZmqTransport().connect(listener.address)
        assert [bytes(frame) for frame in await channel.request([b"x"], timeout=LONG)] == [b"x"]
        await channel.close()


async def test_a_frame_above_the_limit_closes_that_connection_only(raw_socket):
    listener = await ZmqTransport(ZmqOptions(max_message_bytes=1000)).listen("tcp://127.0.0.1:0", echo)
    hostile = raw_socket(zmq.DEALER)
    hostile.connect(listener.address)
    await hostile.send_multipart([pack_header(REQUEST, 1), bytes(100_000)])
    channel = await ZmqTransport().connect(listener.address)
    assert [bytes(frame) for frame in await channel.request([b"x"], timeout=LONG)] == [b"x"]
    await channel.close()
    # A peer with a higher limit learns at once that it was cut off, and not only at its deadline.
    channel = await ZmqTransport().connect(listener.address)
    with pytest.raises(UnavailableError, match="closed the connection"):
        await channel.request([bytes(100_000)], timeout=LONG)
    # Many small frames can exceed the limit, too; that is refused with the reason.
    with pytest.raises(TransportError, match="exceeds the limit of 1000"):
        await channel.request([bytes(600), bytes(600)], timeout=LONG)
    await channel.close()
    await listener.close()


@pytest.mark.parametrize(
    "answers",
    [
        [[b"nonsense"]],
        [[]],
        [[b""], [b"", b""]],
        [[pack_header(REQUEST, 1)]],
        [[pack_header(ANSWER, 999), b"for someone else"]],
        [[os.urandom(64)] for _ in range(50)],
    ],
)
async def test_a_channel_survives_answers_that_are_none(raw_socket, answers):
    router = raw_socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    channel = await ZmqTransport().connect(f"tcp://127.0.0.1:{port}")
    request = asyncio.create_task(channel.request([b"x"], timeout=LONG))
    peer, header, _ = await router.recv_multipart()
    for answer in answers:
        await router.send_multipart([peer, *answer])
    await router.send_multipart([peer, pack_header(ANSWER, struct.unpack("<Q", header[8:])[0]), b"the answer"])
    assert await request == [b"the answer"]
    # The same answer once more, when nobody waits for it.
    await router.send_multipart([peer, header])
    await channel.close()


async def test_a_listener_that_is_too_busy_to_read_makes_the_requester_time_out():
    gate = asyncio.Event()

    async def handler(frames):
        await gate.wait()
        return frames

    listener = await ZmqTransport(ZmqOptions(max_in_flight=1)).listen("tcp://127.0.0.1:0", handler)
    channel = await ZmqTransport().connect(listener.address)
    first = asyncio.create_task(channel.request([b"first"], timeout=LONG))
    with pytest.raises(UnavailableError, match="did not answer"):
        await channel.request([b"second"], timeout=0.2)
    gate.set()
    assert await first == [b"first"]
    assert await channel.request([b"third"], timeout=LONG) == [b"third"]
    await channel.close()
    await listener.close()


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://127.0.0.1:70000", "tcp://127.0.0.1:-1", "tcp://:80", "127.0.0.1:80"],
)
async def test_addresses_without_a_usable_port_are_configuration_errors(address):
    with pytest.raises(ConfigError):
        await ZmqTransport().connect(address)
    with pytest.raises(ConfigError):
        await ZmqTransport().listen(address, echo)


async def test_an_address_of_another_machine_cannot_be_listened_at():
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        await ZmqTransport().listen("tcp://192.0.2.1:0", echo)


async def test_port_zero_can_be_listened_at_but_not_connected_to():
    with pytest.raises(ConfigError):
        await ZmqTransport().connect("tcp://127.0.0.1:0")
    listener = await ZmqTransport().listen("tcp://localhost:0", echo)
    assert listener.address.startswith("tcp://localhost:")
    channel = await ZmqTransport().connect(listener.address)
    assert await channel.request([b"x"], timeout=LONG) == [b"x"]
    await channel.close()
    await listener.close()
