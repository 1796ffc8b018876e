"""What every transport must do: frames there and back, each answer to its request, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmcache_kit.contracts.records import Options, TransportPlugin
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Transport
from lmcache_kit.errors import ConflictError, NotFoundError, TransportError, UnavailableError
from lmcache_kit.testing.suites.base import PluginTests, examples, made
from lmcache_kit.testing.suites.transport_ends import TransportEndTests, gives_up
from lmcache_kit.testing.suites.transport_peer import reverse
from lmcache_kit.testing.suites.transport_processes import TransportProcessTests
from lmcache_kit.testing.suites.transport_site import LONG, SHORT, Site, outcome, plain, within

__all__ = ["TransportTests"]

_MIB = 2**20
_AT_ONCE = 12

_small = st.binary(max_size=200)
# Sizes around places where transports change their ways, without drawing every byte.
_sized = st.builds(
    lambda size, seed: (seed * (size // len(seed) + 1))[:size],
    st.sampled_from([255, 256, 257, 1023, 4095, 4096, 65_535, 65_536, 65_537, 200_001]),
    st.binary(min_size=1, max_size=40),
)
_WRAPPERS: Mapping[str, Callable[[bytes], Buffer]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "part": lambda data: memoryview(b"x" + data + b"y")[1:-1],
}
_frame_lists = st.lists(st.tuples(st.sampled_from(sorted(_WRAPPERS)), _small | _sized), max_size=30)


class TransportTests(TransportProcessTests, TransportEndTests, PluginTests):
    """What :class:`lmcache_kit.contracts.Transport` promises.

    Optional fixture: ``address``, where to listen, for transports that take neither a free port of 127.0.0.1 nor any
    name. Tests that need two listeners ask for it twice.
    """

    record_type = TransportPlugin
    contract = Transport
    capabilities = frozenset({"same_process", "same_host"})

    @pytest.fixture
    def address(self) -> str | None:
        """Where to listen, e.g. ``tcp://127.0.0.1:0``; a free port or a new name where nothing is given."""
        return None

    @pytest.fixture
    def make_transport(self, record: TransportPlugin, made_options: Options) -> Callable[[], Transport]:
        """Makes another transport of the same options."""
        return lambda: made(lambda: record.factory(made_options))

    @pytest.fixture
    def site(
        self, make_transport: Callable[[], Transport], record: TransportPlugin, address: str | None
    ) -> Iterator[Site]:
        """An event loop and what is opened on it, all closed after the test."""
        site = Site(make_transport, record.scheme, address)
        yield site
        site.close()

    # -- frames -------------------------------------------------------------------------------------------------------

    def test_the_listener_says_where_to_find_it(self, site: Site, record: TransportPlugin) -> None:
        async def scenario() -> None:
            listener, channel = await site.pair()
            want = f"{record.scheme}://"
            assert listener.address.startswith(want), f"{listener.address!r} does not begin with {want}"
            assert not listener.address.endswith((":0", "*")), f"{listener.address!r} is no address to connect to"
            assert plain(await channel.request([b"x"], timeout=LONG)) == [b"x"]

        site.run(scenario())

    def test_any_frames_arrive_whole_and_in_order_both_ways(self, site: Site) -> None:
        _, channel = site.run(site.pair(reverse))

        @examples(40)
        @given(frames=_frame_lists)
        @example(frames=[])
        @example(frames=[("bytes", b"")])
        @example(frames=[("bytes", b"")] * 300)
        @example(frames=[("bytes", bytes([number % 256]) * 1001) for number in range(300)])
        def check(frames: list[tuple[str, bytes]]) -> None:
            contents = [b"-", *(data for _, data in frames)] if frames else []
            sent = [_WRAPPERS["bytes"](b"-"), *(_WRAPPERS[name](data) for name, data in frames)] if frames else []
            answer = plain(site.run(channel.request(sent, timeout=LONG)))
            assert [len(frame) for frame in answer] == [len(data) for data in reversed(contents)]
            assert answer == contents[::-1], "frames come back changed"
            assert plain(sent) == contents, "the sender's buffers were changed"

        check()

    @pytest.mark.parametrize("size", [_MIB, 4 * _MIB, 16 * _MIB], ids=["1 MiB", "4 MiB", "16 MiB"])
    def test_large_frames_arrive_whole(self, site: Site, size: int) -> None:
        block = os.urandom(_MIB)
        data = b"".join(number.to_bytes(4, "little") + block[4:] for number in range(size // _MIB))

        async def scenario() -> None:
            _, channel = await site.pair(reverse)
            answer = plain(await channel.request([b"head", data, b"", data[: size // 3]], timeout=LONG))
            assert [len(frame) for frame in answer] == [size // 3, 0, size, 4]
            assert answer == [data[: size // 3], b"", data, b"head"], "frames come back changed"

        site.run(scenario())

    def test_items_wider_than_a_byte_are_sent_as_their_bytes(self, site: Site) -> None:
        words = memoryview(bytearray(range(256)) * 500).cast("Q")

        async def scenario() -> None:
            _, channel = await site.pair()
            assert plain(await channel.request([words], timeout=LONG)) == [words.tobytes()]

        site.run(scenario())

    # -- answers ------------------------------------------------------------------------------------------------------

    def test_each_of_many_requests_in_flight_gets_its_own_answer(self, site: Site) -> None:
        gates: dict[int, asyncio.Event] = {}
        arrived: list[int] = []

        async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
            number = int(bytes(frames[0]))
            arrived.append(number)
            await gates[number].wait()
            return [frames[0], bytes(frames[1])[::-1]]

        _, channel = site.run(site.pair(handler))

        async def scenario(order: Sequence[int], size: int) -> None:
            arrived.clear()
            gates.update({number: asyncio.Event() for number in order})
            payload = {number: bytes([number, 1]) * size + b"end" for number in order}
            tasks = {
                number: asyncio.ensure_future(channel.request([str(number).encode(), payload[number]], timeout=LONG))
                for number in sorted(order)
            }
            for _ in range(int(LONG / 0.01)):
                if len(arrived) == len(order) or any(task.done() for task in tasks.values()):
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError(f"of {len(order)} requests at the same time, {len(arrived)} are handled")
            for number in order:
                gates[number].set()
                answer = plain(await tasks[number])
                assert answer == [str(number).encode(), payload[number][::-1]], (
                    f"request {number} got the answer of request {answer[0].decode() if answer else 'none'}; "
                    f"they were answered in the order {list(order)}"
                )

        @examples(10)
        @given(order=st.permutations(range(_AT_ONCE)), size=st.sampled_from([0, 50, 50_000]))
        def check(order: Sequence[int], size: int) -> None:
            site.run(scenario(order, size))

        check()

    def test_a_slow_request_does_not_hold_up_a_fast_one(self, site: Site) -> None:
        async def scenario() -> None:
            gate = asyncio.Event()

            async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
                if bytes(frames[0]) == b"slow":
                    await gate.wait()
                return frames

            _, channel = await site.pair(handler)
            slow = asyncio.ensure_future(channel.request([b"slow"], timeout=2 * LONG))
            for _ in range(5):
                fast = channel.request([b"fast"], timeout=LONG / 2)
                assert plain(await within(LONG, fast, "the answer to a fast request")) == [b"fast"]
            assert not slow.done()
            gate.set()
            assert plain(await slow) == [b"slow"]

        site.run(scenario())

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("the cup is empty"), "the cup is empty"),
            (RuntimeError("der Löffel\nfehlt 匙"), "der Löffel"),
            (NotFoundError("no such cup"), "no such cup"),
            (UnavailableError("the kitchen is closed"), "the kitchen is closed"),
            (RuntimeError("x" * 100_000), "xxx"),
            (KeyError(), ""),
        ],
        ids=["text", "unicode", "an error of ours", "unavailable", "long", "without a text"],
    )
    def test_what_the_handler_raises_is_a_transport_error_with_its_text(
        self, site: Site, error: Exception, text: str
    ) -> None:
        async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
            if bytes(frames[0]) == b"fail":
                raise error
            return frames

        async def scenario() -> None:
            _, channel = await site.pair(handler)
            for _ in range(2):
                ended = await outcome(channel.request([b"fail"], timeout=LONG), "a request that the handler refuses")
                assert isinstance(ended, TransportError), f"the handler raised, and the caller got {ended!r:.200}"
                assert text in ended.message, f"the handler's text is lost: {ended.message:.200}"
                assert plain(await channel.request([b"on"], timeout=LONG)) == [b"on"], "the channel is spoilt"

        site.run(scenario())

    def test_no_answer_in_time_is_an_unavailable_error(self, site: Site) -> None:
        async def scenario() -> None:
            _, channel = await site.pair(reverse)
            for frames in ([b"hang"], [b"hang", bytes(200_000)]):
                await gives_up(channel.request(frames, timeout=SHORT), "a request that nobody answers")
            assert plain(await channel.request([b"on"], timeout=LONG)) == [b"on"], "the channel is spoilt"

        site.run(scenario())

    def test_a_request_ends_at_its_timeout_and_not_later(self, site: Site) -> None:
        async def scenario() -> None:
            gate = asyncio.Event()

            async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
                await gate.wait()
                return frames

            _, channel = await site.pair(handler)
            # The answer comes long after the timeout: whoever waits longer than it was told gets it.
            asyncio.get_running_loop().call_later(5 * SHORT, gate.set)
            await gives_up(channel.request([b"late"], timeout=SHORT), f"a request with a timeout of {SHORT} s")

        site.run(scenario())

    @pytest.mark.parametrize("timeout", [0.0, -1.0], ids=["no time", "less than none"])
    def test_a_request_whose_time_is_up_ends_at_once(self, site: Site, timeout: float) -> None:
        async def scenario() -> None:
            _, channel = await site.pair(reverse)
            for frames in ([b"hang"], [b"hang", bytes(200_000)]):
                await gives_up(channel.request(frames, timeout=timeout), f"a request with {timeout:g} s left")
            assert plain(await channel.request([b"on"], timeout=LONG)) == [b"on"], "the channel is spoilt"

        site.run(scenario())

    def test_each_request_reaches_the_handler_once(self, site: Site) -> None:
        seen: list[bytes] = []

        async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
            seen.append(bytes(frames[0]))
            if bytes(frames[0]) == b"fail":
                raise ValueError("the cup is empty")
            return frames

        async def scenario() -> None:
            _, channel = await site.pair(handler)
            names = [f"{number}".encode() for number in range(40)]
            await asyncio.gather(
                *(channel.request([name, bytes(5000 * number)], timeout=LONG) for number, name in enumerate(names))
            )
            await outcome(channel.request([b"fail"], timeout=LONG), "a request that the handler refuses")
            await channel.request([b"last"], timeout=LONG)
            assert sorted(seen) == sorted([*names, b"fail", b"last"]), f"the handler was asked {len(seen)} times for 42"

        site.run(scenario())

    @pytest.mark.parametrize("ending", ["given up", "cancelled"])
    def test_a_late_answer_is_never_given_to_another_request(self, site: Site, ending: str) -> None:
        async def scenario() -> None:
            late, later = asyncio.Event(), asyncio.Event()

            async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
                await {b"late": late, b"later": later}.get(bytes(frames[0]), late).wait()
                return [b"answer to " + bytes(frames[0]), bytes(frames[1])]

            _, channel = await site.pair(handler)
            for size in (0, 100_000):
                late.clear()
                later.clear()
                old = asyncio.ensure_future(
                    channel.request([b"late", bytes(size)], timeout=SHORT if ending == "given up" else LONG)
                )
                if ending == "cancelled":
                    await asyncio.sleep(SHORT)
                    old.cancel()
                    await asyncio.wait([old], timeout=LONG)
                else:
                    await gives_up(old, "a request that is answered too late")
                new = asyncio.ensure_future(channel.request([b"later", b"\1" * size], timeout=LONG))
                late.set()  # now the old answer is on its way, and a request waits that it does not belong to
                await asyncio.sleep(SHORT)
                assert not new.done(), f"a request was answered before its time, with {plain(new.result())[0]!r}"
                later.set()
                assert plain(await new) == [b"answer to later", b"\1" * size]
                assert plain(await channel.request([b"x", b""], timeout=LONG)) == [b"answer to x", b""]

        site.run(scenario())

    # -- addresses and channels ---------------------------------------------------------------------------------------

    def test_nobody_listens_is_an_unavailable_error(self, site: Site) -> None:
        async def scenario() -> None:
            channel = await site.connect(await site.free_address())
            for size in (1, 200_000):
                await gives_up(channel.request([bytes(size)], timeout=SHORT), "a request to nobody")

        site.run(scenario())

    def test_an_address_in_use_is_a_conflict_that_names_it(self, site: Site) -> None:
        async def scenario() -> None:
            async def other(frames: Sequence[Buffer]) -> Sequence[Buffer]:
                return [b"from the second listener"]

            listener, channel = await site.pair()
            for transport in (site.far, site.near):
                with pytest.raises(ConflictError) as caught:
                    await transport.listen(listener.address, other)
                assert listener.address in caught.value.message, f"it is not named: {caught.value.message}"
                assert plain(await channel.request([b"first"], timeout=LONG)) == [b"first"]

        site.run(scenario())

    def test_several_channels_do_not_mix_their_answers(self, site: Site) -> None:
        async def scenario() -> None:
            listener, _ = await site.pair(reverse)
            channels = [await site.connect(listener.address) for _ in range(5)]
            for size in (1, 100_000):
                sent = [[b"-", bytes([number]) * size] for number in range(len(channels))] * 3
                answers = await asyncio.gather(
                    *(channel.request(frames, timeout=LONG) for channel, frames in zip(channels * 3, sent, strict=True))
                )
                assert [plain(answer) for answer in answers] == [frames[::-1] for frames in sent]
            await channels[0].close()
            assert plain(await channels[1].request([b"on"], timeout=LONG)) == [b"on"], (
                "closing one channel closes others"
            )

        site.run(scenario())

    # -- buffers ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [10, 200_000], ids=["10 bytes", "200 kB"])
    def test_neither_side_can_write_into_the_buffers_of_the_other(self, site: Site, size: int) -> None:
        def deface(frame: Buffer) -> None:
            view = memoryview(frame)
            if not view.readonly:
                view.cast("B")[:] = b"!" * view.nbytes

        async def scenario() -> None:
            kept = bytearray(b"a" * size)

            async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
                deface(frames[0])
                return [kept]

            _, channel = await site.pair(handler)
            sent = bytearray(b"q" * size)
            for _ in range(2):
                deface((await channel.request([sent], timeout=LONG))[0])
                assert sent == b"q" * size, "the handler wrote into the sender's buffer"
                assert kept == b"a" * size, "the receiver wrote into the handler's buffer"

        site.run(scenario())

    @pytest.mark.parametrize("size", [10, 200_000], ids=["10 bytes", "200 kB"])
    def test_buffers_may_be_used_again_once_the_answer_is_there(
        self, site: Site, record: TransportPlugin, size: int
    ) -> None:
        if "same_process" in record.capabilities:
            pytest.skip("declared same_process: frames may pass by reference")

        async def scenario() -> None:
            received: list[Buffer] = []
            scratch = bytearray(b"a" * size)

            async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
                received.append(frames[0])
                return [scratch]

            _, channel = await site.pair(handler)
            sent = bytearray(b"q" * size)
            answer = await channel.request([sent], timeout=LONG)
            sent[:] = scratch[:] = b"!" * size
            assert plain(answer) == [b"a" * size], "the answer changed with the handler's buffer"
            assert plain(received) == [b"q" * size], "the request changed with the sender's buffer"

        site.run(scenario())
