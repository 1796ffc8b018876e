"""What every transport must do, whatever it is made of."""

import asyncio
import os

import pytest

from lmcache_kit.errors import (
    ConfigError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    TransportError,
    UnavailableError,
)

LONG = 30.0


async def echo(frames):
    return frames


def plain(frames):
    return [bytes(frame) for frame in frames]


async def test_echo_of_every_kind_of_frame(case):
    _, channel = await case.pair(echo)
    big = os.urandom(300_000)
    frames = [b"", b"a", bytearray(b"bc"), memoryview(b"def"), big, bytearray(big), memoryview(big)[7:200_000], b""]
    assert plain(await channel.request(frames, timeout=LONG)) == plain(frames)


async def test_views_of_other_item_types_count_in_bytes(case):
    _, channel = await case.pair(echo)
    words = memoryview(bytearray(os.urandom(160_000))).cast("Q")
    assert plain(await channel.request([words], timeout=LONG)) == [words.tobytes()]


async def test_no_frames_at_all(case):
    _, channel = await case.pair(echo)
    assert await channel.request([], timeout=LONG) == []


async def test_a_frame_of_64_mib_and_its_answer_stay_valid_after_everything_is_closed(case):
    listener, channel = await case.pair(echo)
    big = bytes(range(256)) * (2**26 // 256)
    answer = await channel.request([b"head", big, b"tail"], timeout=LONG)
    await channel.close()
    await listener.close()
    assert plain(answer) == [b"head", big, b"tail"]


async def test_answers_belong_to_their_requests_when_many_are_in_flight(case):
    async def handler(frames):
        await asyncio.sleep(int(bytes(frames[0])) % 7 * 0.002)
        return [frames[0], bytes(frames[1])[::-1]]

    _, channel = await case.pair(handler)
    payload = [os.urandom(100 if number % 3 else 100_000) for number in range(200)]
    answers = await asyncio.gather(
        *(channel.request([str(number).encode(), data], timeout=LONG) for number, data in enumerate(payload))
    )
    assert [plain(answer) for answer in answers] == [
        [str(number).encode(), data[::-1]] for number, data in enumerate(payload)
    ]


async def test_a_slow_request_does_not_hold_up_a_fast_one(case):
    gate = asyncio.Event()

    async def handler(frames):
        if bytes(frames[0]) == b"slow":
            await gate.wait()
        return frames

    _, channel = await case.pair(handler)
    slow = asyncio.create_task(channel.request([b"slow"], timeout=LONG))
    assert plain(await channel.request([b"fast"], timeout=LONG)) == [b"fast"]
    assert not slow.done()
    gate.set()
    assert plain(await slow) == [b"slow"]


async def test_several_channels_to_one_listener(case):
    listener, _ = await case.pair(echo)
    channels = [await case.connect(listener.address) for _ in range(5)]
    answers = await asyncio.gather(
        *(channel.request([bytes([number]) * 100_000], timeout=LONG) for number, channel in enumerate(channels))
    )
    assert [plain(answer) for answer in answers] == [[bytes([number]) * 100_000] for number in range(5)]


async def test_no_more_requests_are_handled_at_a_time_than_allowed(case):
    if case.kind == "inproc":
        pytest.skip("a request within the process is a call and has no queue to wait in")
    running, most = 0, 0

    async def handler(frames):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return frames

    _, channel = await case.pair(handler, max_in_flight=3)
    await asyncio.gather(*(channel.request([b"x"], timeout=LONG) for _ in range(30)))
    assert most == 3


async def test_nobody_listens(case):
    address = case.free_address()
    channel = await case.connect(address)
    with pytest.raises(UnavailableError, match="nobody listens at") as caught:
        await channel.request([b"x" * 100_000], timeout=0.2)
    assert address in caught.value.message


async def test_a_request_that_finds_no_connection_need_not_wait_for_its_deadline(case):
    if case.kind == "inproc":
        pytest.skip("within the process a request waits for its listener, there is no connection to find missing")
    channel = await case.connect(case.free_address(), connect_seconds=0.1)
    with pytest.raises(UnavailableError, match=r"nobody listens at .* waited 0\.1 s"):
        await channel.request([b"x"], timeout=1000)


async def test_the_time_to_connect_does_not_bound_the_time_to_answer(case):
    if case.kind == "inproc":
        pytest.skip("within the process there is no connection")

    async def handler(frames):
        await asyncio.sleep(1.5)
        return frames

    _, channel = await case.pair(handler, connect_seconds=1.0)
    await channel.request([b"first"], timeout=LONG)
    assert plain(await channel.request([b"x"], timeout=LONG)) == [b"x"]


async def test_a_request_that_was_given_up_is_not_delivered_to_a_listener_that_comes_later(case):
    address = case.free_address()
    channel = await case.connect(address)
    with pytest.raises(UnavailableError):
        await channel.request([b"old"], timeout=0.1)
    seen = []

    async def handler(frames):
        seen.append(plain(frames))
        return frames

    await case.listen(handler, address)
    await channel.request([b"new"], timeout=LONG)
    await asyncio.sleep(0.1)
    assert seen == [[b"new"]]


async def test_a_listener_may_come_while_a_request_waits(case):
    address = case.free_address()
    channel = await case.connect(address)
    waiting = asyncio.create_task(channel.request([b"early"], timeout=LONG))
    await asyncio.sleep(0.15)
    await case.listen(echo, address)
    assert plain(await waiting) == [b"early"]


async def test_the_deadline_of_a_handler_that_never_answers(case):
    async def handler(frames):
        if bytes(frames[0]) != b"answer":
            await asyncio.Event().wait()
        return frames

    _, channel = await case.pair(handler)
    await channel.request([b"answer"], timeout=LONG)  # the time to connect is over
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.2 s"):
        await channel.request([b"x" * 100_000], timeout=0.2)


async def test_a_late_answer_goes_to_nobody(case):
    gate = asyncio.Event()

    async def handler(frames):
        if bytes(frames[0]) == b"late":
            await gate.wait()
            return [b"late answer", bytes(200_000)]
        return frames

    _, channel = await case.pair(handler)
    with pytest.raises(UnavailableError):
        await channel.request([b"late"], timeout=0.1)
    gate.set()
    for number in range(5):
        assert plain(await channel.request([str(number).encode()], timeout=LONG)) == [str(number).encode()]


async def test_a_request_that_was_cancelled_leaves_the_channel_usable(case):
    gate = asyncio.Event()

    async def handler(frames):
        if bytes(frames[0][:1]) == b"w":
            await gate.wait()
        return frames

    _, channel = await case.pair(handler)
    tasks = [asyncio.create_task(channel.request([b"w" * 2_000_000], timeout=LONG)) for _ in range(10)]
    for number, task in enumerate(tasks):
        await asyncio.sleep(0 if number % 2 else 0.004)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    gate.set()
    assert plain(await channel.request([b"still here"], timeout=LONG)) == [b"still here"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("the cup is empty"), "ValueError: the cup is empty"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 100_000), "RuntimeError: xxx"),
        (RuntimeError("\ud800 lone surrogate"), "lone surrogate"),
    ],
)
async def test_what_a_handler_raises_reaches_the_caller(case, error, text):
    async def handler(frames):
        raise error

    listener, channel = await case.pair(handler)
    for _ in range(2):
        with pytest.raises(TransportError) as caught:
            await channel.request([b"x"], timeout=LONG)
        assert text in caught.value.message
        assert listener.address in caught.value.message


async def test_the_hint_of_our_own_errors_travels_with_them(case):
    async def handler(frames):
        raise NotFoundError("no such cup", hint="use a glass")

    _, channel = await case.pair(handler)
    with pytest.raises(TransportError, match="no such cup") as caught:
        await channel.request([], timeout=LONG)
    assert caught.value.hint == "use a glass"


@pytest.mark.parametrize("answer", [None, 5, ["text"], [None]])
async def test_a_handler_that_answers_nonsense_is_an_error_of_the_peer(case, answer):
    async def handler(frames):
        return answer

    _, channel = await case.pair(handler)
    with pytest.raises(TransportError):
        await channel.request([b"x"], timeout=LONG)


async def test_the_receiver_cannot_write_into_a_large_frame_of_the_sender(case):
    async def handler(frames):
        view = memoryview(frames[0])
        assert view.readonly
        return [b"ok"]

    _, channel = await case.pair(handler)
    assert plain(await channel.request([bytearray(200_000)], timeout=LONG)) == [b"ok"]


async def test_messages_above_the_limit_are_refused_on_the_way_out_and_on_the_way_back(case):
    async def handler(frames):
        return [bytes(600), bytes(500)] if bytes(frames[0]) == b"too much" else frames

    _, channel = await case.pair(handler, max_message_bytes=1000)
    assert plain(await channel.request([bytes(500), bytes(500)], timeout=LONG)) == [bytes(500), bytes(500)]
    with pytest.raises(InvalidRequestError, match="1001 bytes exceeds the limit of 1000"):
        await channel.request([bytes(500), bytes(501)], timeout=LONG)
    with pytest.raises(TransportError, match="1100 bytes exceeds the limit of 1000"):
        await channel.request([b"too much"], timeout=LONG)
    assert plain(await channel.request([b"fine"], timeout=LONG)) == [b"fine"]


async def test_frames_that_are_not_bytes_are_refused_before_anything_is_sent(case):
    called = []

    async def handler(frames):
        called.append(frames)
        return frames

    _, channel = await case.pair(handler)
    for wrong in (["text"], [None], [3], [memoryview(bytes(100))[::2]]):
        with pytest.raises(InvalidRequestError):
            await channel.request(wrong, timeout=LONG)
    with pytest.raises(InvalidRequestError, match="frames"):
        await channel.request([b""] * 70_000, timeout=LONG)
    assert called == []


async def test_an_address_in_use_is_a_conflict_that_names_it(case):
    listener, channel = await case.pair(echo)
    with pytest.raises(ConflictError) as caught:
        await case.listen(echo, listener.address)
    assert listener.address in caught.value.message
    assert caught.value.hint
    assert plain(await channel.request([b"the first one still works"], timeout=LONG))


async def test_an_address_is_free_again_as_soon_as_its_listener_is_closed(case):
    listener = await case.listen(echo)
    for _ in range(5):
        await listener.close()
        listener = await case.listen(echo, listener.address)


async def test_a_handler_may_close_its_own_listener(case):
    async def handler(frames):
        await listener.close()
        return frames

    listener, channel = await case.pair(handler)
    with pytest.raises(UnavailableError, match="closed"):
        await channel.request([b"stop"], timeout=LONG)
    await listener.close()
    await case.listen(echo, listener.address)


async def test_a_listener_whose_closing_was_given_up_is_closed_all_the_same(case):
    listener = await case.listen(echo)
    closing = asyncio.create_task(listener.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await listener.close()
    await case.listen(echo, listener.address)


async def test_closing_twice_does_nothing_more(case):
    listener, channel = await case.pair(echo)
    await channel.request([b"x"], timeout=LONG)
    for _ in range(3):
        await channel.close()
        await listener.close()
    await asyncio.gather(listener.close(), channel.close())


async def test_closing_a_channel_ends_its_requests(case):
    async def handler(frames):
        await asyncio.Event().wait()

    _, channel = await case.pair(handler)
    tasks = [asyncio.create_task(channel.request([bytes(100_000)], timeout=LONG)) for _ in range(3)]
    await asyncio.sleep(0.1)
    await channel.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, UnavailableError)
        assert "closed" in result.message
    with pytest.raises(UnavailableError, match="closed"):
        await channel.request([b"x"], timeout=LONG)


async def test_closing_a_listener_ends_the_requests_that_it_handles(case):
    started = asyncio.Event()
    cancelled = []

    async def handler(frames):
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    listener, channel = await case.pair(handler)
    task = asyncio.create_task(channel.request([b"x"], timeout=LONG))
    await started.wait()
    await listener.close()
    assert cancelled == [True]
    with pytest.raises(UnavailableError):
        await task


async def test_a_channel_finds_its_peer_again_after_the_peer_restarted(case):
    listener, channel = await case.pair(echo)
    for number in range(3):
        data = os.urandom(100_000)
        assert plain(await channel.request([data], timeout=LONG)) == [data], number
        await listener.close()
        with pytest.raises(UnavailableError):
            await channel.request([data], timeout=0.05)
        listener = await case.listen(echo, listener.address)
    assert plain(await channel.request([b"again"], timeout=LONG)) == [b"again"]


async def test_chosen_addresses_differ_and_can_be_connected_to(case):
    listeners = [await case.listen(echo) for _ in range(3)]
    assert len({listener.address for listener in listeners}) == 3
    for listener in listeners:
        assert "*" not in listener.address
        assert not listener.address.endswith(":0")
        channel = await case.connect(listener.address)
        assert plain(await channel.request([b"x"], timeout=LONG)) == [b"x"]


@pytest.mark.parametrize("rest", ["", "a b", "../up", "/abs", "a/b", ".hidden", "x" * 65, "*", "a\n"])
async def test_addresses_that_are_none_are_configuration_errors(case, rest):
    scheme = {"zmq": "tcp"}.get(case.kind, case.kind)
    with pytest.raises(ConfigError, match=r"not a.* address"):
        await case.transport().connect(f"{scheme}://{rest}")
    with pytest.raises(ConfigError, match=r"not a.* address"):
        await case.transport().connect(f"other://{rest}")
    if rest != "*":
        with pytest.raises(ConfigError, match=r"not a.* address"):
            await case.transport().listen(f"{scheme}://{rest}", echo)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open descriptors are counted through /proc")
async def test_opening_and_closing_leaks_no_descriptors(case):
    async def once():
        listener, channel = await case.pair(echo)
        await channel.request([bytes(300_000)], timeout=LONG)
        await channel.close()
        await listener.close()

    await once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await once()
    assert len(os.listdir("/proc/self/fd")) <= before
