"""What must hold between two processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from lmcache_kit.contracts.records import TransportPlugin
from lmcache_kit.contracts.transport import Transport
from lmcache_kit.testing.suites.transport_ends import answered_in_the_end, gives_up
from lmcache_kit.testing.suites.transport_peer import Peer, converse, reverse
from lmcache_kit.testing.suites.transport_site import SHORT, Site

__all__ = ["TransportProcessTests"]


class TransportProcessTests:
    """Part of :class:`lmcache_kit.testing.TransportTests`."""

    @pytest.fixture
    def make_peer(
        self, make_transport: Callable[[], Transport], record: TransportPlugin, address: str | None
    ) -> Iterator[Callable[[], Peer]]:
        """Makes other processes, which end with the test; ask for all of them before anything is opened."""
        if "same_process" in record.capabilities:
            pytest.skip("declared same_process: there is no other process to reach")
        peers: list[Peer] = []

        def make_peer() -> Peer:
            peers.append(Peer(make_transport, record.scheme, address))
            return peers[-1]

        yield make_peer
        for peer in peers:
            peer.kill()

    def test_a_listener_in_another_process_answers(self, make_peer: Callable[[], Peer], site: Site) -> None:
        address = make_peer().start_listening()

        async def scenario() -> None:
            await converse(await site.connect(address))

        site.run(scenario())

    def test_a_listener_answers_another_process(self, make_peer: Callable[[], Peer], site: Site) -> None:
        peers = [make_peer(), make_peer()]

        async def scenario() -> None:
            listener = await site.listen(reverse)
            for peer in peers:
                peer.start_asking(listener.address)
            await asyncio.gather(*(peer.finished() for peer in peers))

        site.run(scenario())

    def test_a_process_that_is_killed_is_missed_and_found_again(
        self, make_peer: Callable[[], Peer], site: Site
    ) -> None:
        first, second = make_peer(), make_peer()
        address = first.start_listening()

        async def scenario() -> None:
            channel = await site.connect(address)
            await converse(channel)
            hanging = asyncio.ensure_future(channel.request([b"hang"], timeout=10 * SHORT))
            await asyncio.sleep(SHORT)
            first.kill()
            await gives_up(hanging, "a request to a process that was killed")
            await gives_up(channel.request([b"x"], timeout=SHORT), "a request to a killed process")
            second.start_listening(address)
            await answered_in_the_end(channel)
            await converse(channel)

        site.run(scenario())
