"""What must hold when listeners and channels are closed, come back, and go for good."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import pytest

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel
from lmcache_kit.errors import TransportError, UnavailableError
from lmcache_kit.testing.suites.transport_peer import reverse
from lmcache_kit.testing.suites.transport_site import LONG, SHORT, Site, outcome, plain, within

__all__ = ["TransportEndTests", "answered_in_the_end", "gives_up"]

_FDS = Path("/proc/self/fd")
_MAPS = Path("/proc/self/maps")
_SHARED_MEMORY = "/dev/shm/"  # noqa: S108  (only looked at)


def _exist(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if os.path.lexists(path))


def _shared_memory() -> set[str]:
    """Files of shared memory that this process has mapped or open."""
    paths = {line.split(maxsplit=5)[5] for line in _MAPS.read_text().splitlines() if _SHARED_MEMORY in line}
    for entry in _FDS.iterdir():
        try:
            paths.add(os.readlink(entry))
        except OSError:  # closed meanwhile
            continue
    return {path.removesuffix(" (deleted)") for path in paths if path.startswith(_SHARED_MEMORY)}


async def gives_up(request: Awaitable[Sequence[Buffer]], what: str) -> None:
    """The request must end with UnavailableError, and not as if the peer's handler had raised."""
    ended = await outcome(request, what)
    assert isinstance(ended, UnavailableError), f"{what} ends with {ended!r:.200}, not with UnavailableError"
    assert not isinstance(ended, TransportError), f"{what} ends as if the peer had refused it: {ended.message}"
    assert ended.message.strip(), f"{what} ends with an error without a message"


async def answered_in_the_end(channel: Channel) -> None:
    """A channel may need some tries to find a peer that came back."""
    for _ in range(int(LONG)):
        try:
            assert plain(await channel.request([b"again"], timeout=1)) == [b"again"]
        except UnavailableError:
            await asyncio.sleep(SHORT / 4)
        else:
            return
    raise AssertionError("a channel does not find its peer again")


async def _settled(look: Callable[[], bool]) -> bool:
    """Whether ``look`` becomes true; what was closed may take a moment to go."""
    for number in range(200):
        if look():
            return True
        await asyncio.sleep(0.02)
        if number % 50 == 0:
            gc.collect()
    return look()


async def _busy(site: Site) -> None:
    """Answers, a refusal, a timeout, a cancelled request, one that is still in flight; then everything is closed."""
    listener, channel = await site.pair(reverse)
    await asyncio.gather(*(channel.request([b"-", bytes(size)], timeout=LONG) for size in (0, 10, 300_000)))
    with pytest.raises(TransportError):
        await channel.request([b"fail"], timeout=LONG)
    with pytest.raises(UnavailableError):
        await channel.request([b"hang"], timeout=SHORT / 4)
    cancelled = asyncio.ensure_future(channel.request([b"hang", bytes(200_000)], timeout=LONG))
    hanging = asyncio.ensure_future(channel.request([b"hang", bytes(200_000)], timeout=LONG))
    await asyncio.sleep(SHORT / 4)
    cancelled.cancel()
    await channel.close()
    await listener.close()
    await asyncio.gather(cancelled, hanging, return_exceptions=True)


class TransportEndTests:
    """Part of :class:`lmcache_kit.testing.TransportTests`."""

    def test_a_listener_that_comes_later_is_found(self, site: Site) -> None:
        async def scenario() -> None:
            address = await site.free_address()
            channel = await site.connect(address)
            await gives_up(channel.request([b"too early"], timeout=SHORT), "a request to nobody")
            await site.listen(reverse, address)
            await answered_in_the_end(channel)

        site.run(scenario())

    def test_a_listener_that_comes_back_is_found_again(self, site: Site) -> None:
        async def scenario() -> None:
            listener, channel = await site.pair(reverse)
            for _ in range(3):
                await answered_in_the_end(channel)
                await listener.close()
                await gives_up(
                    channel.request([b"x", bytes(100_000)], timeout=SHORT), "a request after the listener was closed"
                )
                listener = await site.listen(reverse, listener.address)
            await answered_in_the_end(channel)

        site.run(scenario())

    def test_an_address_is_free_as_soon_as_its_listener_is_closed(self, site: Site) -> None:
        async def scenario() -> None:
            listener = await site.listen()
            for _ in range(5):
                await listener.close()
                listener = await site.listen(address=listener.address)

        site.run(scenario())

    def test_closing_a_listener_ends_the_requests_in_flight(self, site: Site) -> None:
        async def scenario() -> None:
            listener, channel = await site.pair(reverse)
            await channel.request([b"x"], timeout=LONG)
            waiting = [asyncio.ensure_future(channel.request([b"hang"], timeout=10 * SHORT)) for _ in range(3)]
            await asyncio.sleep(SHORT)
            await within(LONG, listener.close(), "closing the listener")
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, UnavailableError), f"a request in flight ended with {result!r:.200}"

        site.run(scenario())

    def test_closing_a_channel_ends_its_requests_in_flight_at_once(self, site: Site) -> None:
        async def scenario() -> None:
            _, channel = await site.pair(reverse)
            await channel.request([b"x"], timeout=LONG)
            waiting = [
                asyncio.ensure_future(channel.request([b"hang", bytes(size)], timeout=4 * LONG))
                for size in (0, 10, 200_000)
            ]
            await asyncio.sleep(SHORT)
            await within(LONG, channel.close(), "closing the channel")
            for request in waiting:
                await gives_up(request, "a request whose channel was closed")
            await gives_up(channel.request([b"x"], timeout=LONG), "a request on a closed channel")

        site.run(scenario())

    def test_closing_twice_does_nothing_more(self, site: Site) -> None:
        async def scenario() -> None:
            listener, channel = await site.pair(reverse)
            await channel.request([b"x"], timeout=LONG)
            for _ in range(3):
                await channel.close()
                await listener.close()
            await asyncio.gather(listener.close(), channel.close(), listener.close(), channel.close())
            unused = await site.connect(listener.address)
            await unused.close()
            await unused.close()

        site.run(scenario())

    def test_answers_outlive_their_channel_and_listener(self, site: Site) -> None:
        async def scenario() -> None:
            listener, channel = await site.pair(reverse)
            large = bytes(range(256)) * 4000
            answer = await channel.request([b"-", large], timeout=LONG)
            await channel.close()
            await listener.close()
            assert plain(answer) == [large, b"-"]

        site.run(scenario())

    def test_closing_leaves_no_tasks_and_no_unseen_errors(self, site: Site) -> None:
        async def scenario() -> None:
            before = asyncio.all_tasks()
            await _busy(site)
            await _settled(lambda: asyncio.all_tasks() <= before)
            left = [task.get_coro() for task in asyncio.all_tasks() - before]
            assert not left, f"tasks are left: {', '.join(getattr(each, '__qualname__', repr(each)) for each in left)}"

        site.run(scenario())
        assert not site.complaints, f"errors that nobody saw: {'; '.join(site.complaints)}"

    @pytest.mark.skipif(not _FDS.is_dir(), reason="open descriptors are counted through /proc")
    def test_closing_leaves_no_descriptors(self, site: Site) -> None:
        async def scenario() -> None:
            await _busy(site)
            gc.collect()
            before = len(os.listdir(_FDS))
            for _ in range(4):
                await _busy(site)
            assert await _settled(lambda: len(os.listdir(_FDS)) <= before), (
                f"{len(os.listdir(_FDS)) - before} descriptors are left open after closing 4 listeners and channels"
            )

        site.run(scenario())

    @pytest.mark.skipif(not _MAPS.is_file(), reason="shared memory is looked for through /proc")
    def test_closing_leaves_no_shared_memory(self, site: Site) -> None:
        async def scenario() -> set[str]:
            before, seen = _shared_memory(), set[str]()

            async def handler(frames: Sequence[Buffer]) -> Sequence[Buffer]:
                answer = [bytes(4 * 2**20)]
                seen.update(_shared_memory())
                return answer

            listener, channel = await site.pair(handler)
            await asyncio.gather(*(channel.request([bytes(2**20 + 1)], timeout=LONG) for _ in range(4)))
            seen.update(_shared_memory())
            await channel.close()
            await listener.close()
            await _busy(site)
            await _settled(lambda: _shared_memory() <= before)
            mapped = _shared_memory() - before
            assert not mapped, f"{len(mapped)} pieces of shared memory are still mapped or open: {min(mapped)}"
            left = _exist(seen - before)
            assert not left, f"{len(left)} files of shared memory are left behind: {left[0]}"
            return seen - before

        if not site.run(scenario()):
            pytest.skip("it uses no shared memory")
