"""Chunks between instances, over a store that only remembers."""

import asyncio

import msgspec
import pytest

from lmcache_kit.builtin.transports.inproc import InprocTransport
from lmcache_kit.contracts.records import TransportPlugin
from lmcache_kit.errors import (
    BlobError,
    CapacityError,
    ConflictError,
    InvalidRequestError,
    LMCacheKitError,
    NotFoundError,
    TransportError,
    UnavailableError,
    UnknownNameError,
)
from lmcache_kit.instance.peer import PeerServer
from lmcache_kit.instance.peer.messages import MAX_PAGE, Answer, GetRequest, PutRequest, encode_message
from lmcache_kit.kv import ChunkKey

LONG = 30.0
CPU = "LocalCPUBackend"
KEYS = [1, -1, 0, 2**63 - 1, -(2**63), 2**64 - 1, -4446532143507722017]


async def test_chunks_go_there_and_back_unchanged(peers, store):
    server, client = await peers.serve(store), peers.client()
    blobs = {hash_: peers.blob(hash_, tokens=index + 1) for index, hash_ in enumerate(KEYS)}
    for index, (hash_, blob) in enumerate(blobs.items()):
        assert await client.send(server.address, CPU, blob, timeout=LONG) == index + 1
        assert store.held[CPU][ChunkKey("model-a", hash_)] == blob
    for hash_, blob in blobs.items():
        assert await client.fetch(server.address, CPU, ChunkKey("model-a", hash_)) == blob
    assert store.held["LocalDiskBackend"] == {}
    assert server.stats() == {
        "received_blobs": len(KEYS),
        "received_bytes": sum(map(len, blobs.values())),
        "sent_blobs": len(KEYS),
        "sent_bytes": sum(map(len, blobs.values())),
        "refused": 0,
    }


async def test_bytes_are_not_copied_on_the_way_within_a_process(peers, store):
    server, client = await peers.serve(store), peers.client()
    blob = bytes(peers.blob(5))
    key = ChunkKey("model-a", 5)
    store.held[CPU][key] = blob
    assert await client.fetch(server.address, CPU, key) is blob


async def test_a_chunk_that_is_not_there(peers, store):
    server, client = await peers.serve(store), peers.client()
    assert await client.fetch(server.address, CPU, ChunkKey("model-a", 9)) is None


async def test_contents_are_complete_over_many_pages(peers, store):
    server, client = await peers.serve(store), peers.client()
    keys = [ChunkKey("model-a", (-1) ** number * number) for number in range(2 * MAX_PAGE + 5)]
    store.held[CPU] = dict.fromkeys(keys, b"")
    found = await client.contents(server.address, CPU)
    assert len(found) == len(keys)
    assert set(found) == set(keys)
    assert [key.name() for key in found] == sorted(key.name() for key in keys)
    assert await client.contents(server.address, "LocalDiskBackend") == []


async def test_ping_says_who_is_there(peers, store):
    server, client = await peers.serve(store), peers.client()
    assert await client.ping(server.address) == ("model-a", [CPU, "LocalDiskBackend"])


async def test_a_chunk_of_another_model_is_refused_by_both_names(peers, store):
    server, client = await peers.serve(store), peers.client()
    with pytest.raises(ConflictError) as caught:
        await client.send(server.address, CPU, peers.blob(model="model-b"), timeout=LONG)
    assert "model-b" in caught.value.message
    assert "model-a" in caught.value.message
    assert server.address in caught.value.message
    assert caught.value.hint
    assert store.held[CPU] == {}
    assert server.stats()["refused"] == 1


@pytest.mark.parametrize("cut", [0, 3, 20, 67, 100, -1])
async def test_truncated_blobs_are_refused(peers, store, cut):
    server, client = await peers.serve(store), peers.client()
    with pytest.raises(LMCacheKitError) as caught:
        await client.send(server.address, CPU, peers.blob()[:cut], timeout=LONG)
    assert caught.value.status == 500
    assert "blob" in caught.value.message
    assert store.held[CPU] == {}


async def test_a_blob_that_was_damaged_on_the_way_is_refused(peers, store):
    server, client = await peers.serve(store), peers.client()
    for position in (5, 40, 90, -1):
        blob = bytearray(peers.blob())
        blob[position] ^= 1
        with pytest.raises(LMCacheKitError):
            await client.send(server.address, CPU, blob, timeout=LONG)
    assert store.held[CPU] == {}


async def test_a_peer_that_answers_with_another_chunk_is_found_out(peers, store):
    server, client = await peers.serve(store), peers.client()
    store.held[CPU][ChunkKey("model-a", 1)] = bytes(peers.blob(2))
    with pytest.raises(BlobError, match=r"chunk model-a\.2 when asked for model-a\.1"):
        await client.fetch(server.address, CPU, ChunkKey("model-a", 1))
    store.held[CPU][ChunkKey("model-a", 1)] = b"rubbish"
    with pytest.raises(BlobError):
        await client.fetch(server.address, CPU, ChunkKey("model-a", 1))


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (CapacityError("no room", hint="evict"), CapacityError, 507),
        (UnavailableError("tier gone", hint="wait"), UnavailableError, 503),
        (UnknownNameError("location", "X", ["A", "B"]), NotFoundError, 404),
        (ConflictError("pinned", hint="unpin"), ConflictError, 409),
        (BlobError("damaged", hint="drop it"), LMCacheKitError, 500),
        (InvalidRequestError("what?", hint="ask again"), InvalidRequestError, 400),
    ],
)
async def test_errors_arrive_with_their_status_text_and_hint(peers, store, error, kind, status):
    server, client = await peers.serve(store), peers.client()
    store.error = error
    for attempt in (
        client.send(server.address, CPU, peers.blob(), timeout=LONG),
        client.fetch(server.address, CPU, ChunkKey("model-a", 1)),
    ):
        with pytest.raises(kind) as caught:
            await attempt
        assert caught.value.status == status
        assert caught.value.hint == error.hint
        assert error.message in caught.value.message


async def test_an_unexpected_error_shows_its_kind_and_nothing_else(peers, store, caplog):
    server, client = await peers.serve(store), peers.client()
    store.error = RuntimeError("the password is swordfish")
    with pytest.raises(LMCacheKitError, match="internal error: RuntimeError") as caught:
        await client.send(server.address, CPU, peers.blob(), timeout=LONG)
    assert "swordfish" not in caught.value.detail
    assert "a peer's request failed" in caplog.text


async def test_an_unknown_location_names_the_known_ones(peers, store):
    server, client = await peers.serve(store), peers.client()
    for attempt in (
        client.send(server.address, "LocalCPUBackend2", peers.blob(), timeout=LONG),
        client.fetch(server.address, "LocalCPUBackend2", ChunkKey("model-a", 1)),
        client.contents(server.address, "LocalCPUBackend2"),
    ):
        with pytest.raises(NotFoundError, match="LocalCPUBackend2") as caught:
            await attempt
        assert "LocalDiskBackend" in caught.value.hint


async def test_a_blob_above_the_bound_is_refused(peers, store):
    server, client = await peers.serve(store, max_blob_bytes=150), peers.client()
    assert await client.send(server.address, CPU, peers.blob(1, tokens=1), timeout=LONG) == 1
    with pytest.raises(InvalidRequestError, match="at most 150"):
        await client.send(server.address, CPU, peers.blob(1, tokens=10), timeout=LONG)


async def test_the_server_gives_up_when_the_requester_has(peers, store):
    server = await peers.serve(store)
    store.gate = asyncio.Event()
    channel = await InprocTransport().connect(server.address)
    frames = await channel.request([encode_message(PutRequest(location=CPU, seconds=0.05)), peers.blob()], timeout=LONG)
    assert msgspec.msgpack.decode(frames[0])["status"] == 503
    await channel.close()
    client = peers.client()
    with pytest.raises(UnavailableError):
        await client.send(server.address, CPU, peers.blob(), timeout=0.05)
    store.gate.set()
    assert await client.send(server.address, CPU, peers.blob(), timeout=LONG) == 3


MALFORMED = [
    [],
    [b""],
    [b"\xc1"],
    [b"\x80"],
    [b"{}"],
    [msgspec.msgpack.encode({"op": "ping"})[:-1]],
    [msgspec.msgpack.encode({"op": "format_disk", "v": 1})],
    [msgspec.msgpack.encode({"op": "ping", "v": 2})],
    [msgspec.msgpack.encode({"op": "ping", "v": "1"})],
    [msgspec.msgpack.encode({"op": "ping", "seconds": 0})],
    [msgspec.msgpack.encode({"op": "ping", "seconds": 1e300})],
    [msgspec.msgpack.encode({"op": "ping", "seconds": float("nan")})],
    [msgspec.msgpack.encode({"op": "put", "location": CPU})],
    [msgspec.msgpack.encode({"op": "put", "location": CPU}), b"", b""],
    [msgspec.msgpack.encode({"op": "put", "location": ""}), b""],
    [msgspec.msgpack.encode({"op": "put", "location": "x" * 1000}), b""],
    [msgspec.msgpack.encode({"op": "put", "location": 5}), b""],
    [msgspec.msgpack.encode({"op": "get", "location": CPU, "key": "../../etc/passwd"})],
    [msgspec.msgpack.encode({"op": "get", "location": CPU, "key": "a.1"}), b"more"],
    [msgspec.msgpack.encode({"op": "get", "location": CPU, "key": "model-a.01"})],
    [msgspec.msgpack.encode({"op": "contents", "location": CPU, "limit": 10**9})],
    [msgspec.msgpack.encode({"op": "contents", "location": CPU, "limit": 0})],
    [b"\x91" * 100_000],
    [bytes(5 * 2**20)],
]


@pytest.mark.parametrize("frames", MALFORMED)
async def test_malformed_requests_are_answered_with_400_and_change_nothing(peers, store, frames):
    server = await peers.serve(store)
    channel = await InprocTransport().connect(server.address)
    answer = await channel.request(frames, timeout=LONG)
    assert len(answer) == 1
    decoded = msgspec.msgpack.decode(answer[0], type=Answer)
    assert decoded.status == 400
    assert decoded.error
    assert store.held[CPU] == {}
    await channel.close()
    assert await peers.client().ping(server.address)


async def test_keys_that_a_newer_release_adds_are_ignored(peers, store):
    server = await peers.serve(store)
    channel = await InprocTransport().connect(server.address)
    answer = await channel.request([msgspec.msgpack.encode({"op": "ping", "colour": "blue"})], timeout=LONG)
    assert msgspec.msgpack.decode(answer[0])["model"] == "model-a"
    await channel.close()


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [b""],
        [b"\xc1"],
        [encode_message(Answer(found=True))],
        [encode_message(Answer()), b"a blob that was not announced"],
        [encode_message(Answer(v=2))],
        [encode_message(GetRequest(location="x", key="y")) + b"x"],
        [bytes(5 * 2**20)],
    ],
)
async def test_malformed_answers_are_transport_errors_that_name_the_peer(peers, answer):
    async def handler(frames):
        return answer

    listener = await InprocTransport().listen("inproc://*", handler)
    client = peers.client()
    with pytest.raises(TransportError, match=listener.address):
        await client.fetch(listener.address, CPU, ChunkKey("m", 1))
    await listener.close()


async def test_a_peer_that_repeats_a_page_does_not_keep_the_client_busy_for_ever(peers):
    async def handler(frames):
        return [encode_message(Answer(keys=["m.1"], more=True))]

    listener = await InprocTransport().listen("inproc://*", handler)
    with pytest.raises(TransportError, match="same page"):
        await peers.client().contents(listener.address, CPU)
    await listener.close()


async def test_a_strange_status_is_still_an_error(peers):
    async def handler(frames):
        return [encode_message(Answer(status=418, error="a teapot"))]

    listener = await InprocTransport().listen("inproc://*", handler)
    with pytest.raises(LMCacheKitError, match="a teapot"):
        await peers.client().ping(listener.address)
    await listener.close()


async def test_nobody_there(peers):
    with pytest.raises(UnavailableError, match="inproc://nobody"):
        await peers.client().send("inproc://nobody", CPU, peers.blob(), timeout=0.05)


async def test_one_channel_per_peer_however_many_ask_at_once(peers, store):
    server = await peers.serve(store)
    connected = []

    class Counting(InprocTransport):
        async def connect(self, address):
            connected.append(address)
            await asyncio.sleep(0.01)
            return await super().connect(address)

    client = peers.client(transports={"inproc": Counting()})
    await asyncio.gather(*(client.send(server.address, CPU, peers.blob(n), timeout=LONG) for n in range(20)))
    assert connected == [server.address]
    assert len(store.held[CPU]) == 20


async def test_a_channel_that_could_not_be_opened_is_tried_again(peers, store):
    server = await peers.serve(store)
    attempts = []

    class Failing(InprocTransport):
        async def connect(self, address):
            attempts.append(address)
            if len(attempts) < 3:
                raise UnavailableError("no descriptors left")
            return await super().connect(address)

    client = peers.client(transports={"inproc": Failing()})
    for _ in range(2):
        with pytest.raises(UnavailableError, match="descriptors"):
            await client.ping(server.address)
    assert await client.ping(server.address)


async def test_a_scheme_without_a_transport_names_the_known_ones(peers):
    with pytest.raises(UnknownNameError, match="peer URL scheme 'pigeon'") as caught:
        await peers.client().ping("pigeon://post")
    assert {"inproc", "shm", "tcp"} <= set(caught.value.known)


async def test_transports_come_from_the_plugins_by_their_scheme(peers, store):
    asked = []

    class Plugins:
        def all(self, kind):
            assert kind == "transport"
            record = TransportPlugin(name="x", summary="x", scheme="inproc", factory=self.make)
            return [type("Entry", (), {"record": record})]

        @staticmethod
        def options(record):
            return record.options()

        @staticmethod
        def make(options):
            asked.append(options)
            return InprocTransport()

    server = await peers.serve(store)
    client = peers.client(plugins=Plugins())
    await client.ping(server.address)
    await client.ping(server.address)
    assert len(asked) == 1


async def test_links_are_shaped_by_peer_and_by_the_star(peers, store):
    named, other = await peers.serve(store), await peers.serve(store)
    client = peers.client(shaping={named.address: (1e6, 0.02), "*": (None, 0.0)})
    await client.send(named.address, CPU, peers.blob(1), timeout=LONG)
    await client.send(other.address, CPU, peers.blob(2), timeout=LONG)
    stats = client.stats()
    assert stats[named.address]["bandwidth"] == 1e6
    assert stats[named.address]["outward"]["bytes"] > len(peers.blob(1))
    assert stats[named.address]["outward"]["busy_seconds"] == pytest.approx(
        stats[named.address]["outward"]["bytes"] / 1e6
    )
    assert stats[other.address]["bandwidth"] is None
    assert peers.client().stats() == {}


async def test_closing_ends_what_is_under_way_and_refuses_what_comes_after(peers, store):
    server, client = await peers.serve(store), peers.client()
    store.gate = asyncio.Event()
    sending = asyncio.create_task(client.send(server.address, CPU, peers.blob(), timeout=LONG))
    await asyncio.sleep(0.02)
    await client.close()
    await client.close()
    with pytest.raises(UnavailableError):
        await sending
    with pytest.raises(UnavailableError, match="closed"):
        await client.ping(server.address)
    await server.close()
    await server.close()


async def test_a_server_starts_once_and_has_an_address_only_then(peers, store):
    idle = PeerServer()
    with pytest.raises(ConflictError, match="not started"):
        _ = idle.address
    await idle.close()
    server = await peers.serve(store)
    with pytest.raises(ConflictError, match="already"):
        await server.start("inproc://*", InprocTransport(), store)
    with pytest.raises(ConflictError, match=server.address):
        await PeerServer().start(server.address, InprocTransport(), store)
