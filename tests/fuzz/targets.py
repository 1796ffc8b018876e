"""What is fuzzed: for each decoder of foreign bytes a function that may end in the documented errors and no others.

A target takes any bytes. Where a checksum stands in the way it is made right first, since whoever forges a frame does
the same. Errors that the product survives by logging them count as found too: see :func:`main_guard`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import blake3
import numpy as np
from lmcache_kit_cachegen.container import head_size, read_directory
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_cachegen.stream import LayerStream
from lmcache_kit_kernels.checks import weighted_sum

from lmcache_kit import messages as wire
from lmcache_kit.builtin.compression.fp8 import Fp8Method
from lmcache_kit.builtin.compression.naive import NaiveMethod
from lmcache_kit.builtin.compression.zstd import ZstdMethod
from lmcache_kit.builtin.transports.options import ShmOptions
from lmcache_kit.builtin.transports.segments import SegmentFolder
from lmcache_kit.builtin.transports.shared_memory import _Packer
from lmcache_kit.builtin.transports.zmq_wire import pack_header, unpack_header, unpack_refusal
from lmcache_kit.clock import ManualClock
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.errors import BlobError, InvalidRequestError, TransportError
from lmcache_kit.instance.faults import decode_faults
from lmcache_kit.instance.http.schemas import CompletionBody, DetokenizeBody, TokenizeBody, decode_body
from lmcache_kit.instance.peer.messages import decode_answer, decode_request, encode_message
from lmcache_kit.instance.peer.server import PeerServer
from lmcache_kit.instance.peer.url import normal_peer_url, same_peer
from lmcache_kit.kv import ChunkKey, KVLayout, KVTensor
from lmcache_kit.kv.blob import BlobHeader, pack_blob, unpack_blob
from lmcache_kit.traces import load_trace
from lmcache_kit.traces.lines import mooncake_lines

__all__ = ["LARGEST_INPUT", "TARGETS", "join", "main_guard", "mixed", "split"]

LARGEST_INPUT = 4096
"""Bytes. An input of this size must not make a target hold megabytes."""


@cache
def folder() -> Path:
    """Where targets keep files: in memory, for tens of thousands are written. The runner names one and removes it."""
    given = os.environ.get("FUZZ_FOLDER")
    return Path(given or tempfile.mkdtemp(prefix="lmcache-kit-fuzz-", dir=shared_memory()))


def shared_memory() -> str | None:
    """A file system in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class _Raise(logging.Handler):
    """An exception that was caught and logged with its traceback is one that nobody foresaw."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            raise record.exc_info[1]


@contextlib.contextmanager
def main_guard() -> Iterator[None]:
    """While it lasts, exceptions that the product logs and survives are raised."""
    handler, logger = _Raise(), logging.getLogger("lmcache_kit")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Pieces ``(kind, bytes)``: each has a byte of kind, two of length (little-endian) and as many as there are."""
    pieces = []
    while len(data) > 3:
        kind, size = struct.unpack_from("<BH", data)
        pieces.append((kind, data[3 : 3 + size]))
        data = data[3 + size :]
    return pieces


def join(pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """What :func:`split` takes apart."""
    return b"".join(struct.pack("<BH", kind, len(piece)) + piece for kind, piece in pieces)


# --- frames of the controller protocol --------------------------------------------------------------------------------

_DECODERS = (
    wire.decode_pushed,
    wire.decode_worker_request,
    wire.decode_worker_reply,
    wire.decode_control,
    wire.decode_control_reply,
)


def messages(data: bytes) -> None:
    """Every decoder refuses a payload or reads a message that it reads again from its own encoding."""
    for decode in _DECODERS:
        with contextlib.suppress(InvalidRequestError):
            message = decode(data)
            assert decode(wire.encode(message)) == message or "nan" in repr(message)


def controller(data: bytes) -> None:
    """A controller goes on serving whatever frames came in whatever order, and answers each request readably."""
    clock = ManualClock()
    core = ControllerCore(clock=clock, max_operations=8)
    for kind, piece in split(data):
        match kind % 5:
            case 0:
                core.receive_pushed(piece)
            case 1:
                wire.decode_worker_reply(core.receive_request(piece))
            case 2:
                wire.decode_worker_reply(core.receive_request(piece, "heartbeat"))
            case 3:
                clock.advance(len(piece))
                core.tick()
            case _:
                tokens = list(piece)
                found = core.lookup(tokens)
                assert all(0 < held <= len(tokens) for held in found.prefix.values())
                core.explain(tokens, found)
    while core.tick():
        pass
    # It still serves: someone new joins, and what it holds is found.
    core.on_request(wire.RegisterMsg(instance_id="last", worker_id=0, ip="h", port=1, chunk_size=4, none_hash=0))
    operation = wire.KVOpEvent(op_type="admit", key=hash((0, (7,), ())))
    core.on_pushed(wire.BatchedKVOperationMsg(instance_id="last", worker_id=0, location="cpu", operations=[operation]))
    if len(core.registry.workers("last")) == 1:
        assert core.lookup([7]).layout["last"] == ("cpu", 1)


# --- blobs ------------------------------------------------------------------------------------------------------------

_BLOB_HEAD = 60
_METHODS = {"naive": NaiveMethod(), "zstd": ZstdMethod(), "fp8": Fp8Method()}


def sealed_blob(data: bytes) -> bytes:
    """``data`` with the sizes and checksums of a blob's header made right, as far as it has one."""
    if len(data) < _BLOB_HEAD + 4:
        return data
    made = bytearray(data)
    names = made[56] + made[57]
    end = _BLOB_HEAD + names
    if len(made) < end + 4:
        return data
    payload = bytes(made[end + 4 :])
    struct.pack_into("<H", made, 6, end + 4)
    struct.pack_into("<Q", made, 32, len(payload))
    made[40:56] = blake3.blake3(payload).digest(16)
    struct.pack_into("<I", made, end, zlib.crc32(made[:end]))
    return bytes(made)


def blob(data: bytes) -> None:
    """A blob is refused, or is what packing its parts gives; so is its payload, whole and layer by layer."""
    for candidate in (data, sealed_blob(data)):
        try:
            found = unpack_blob(candidate)
        except BlobError:
            continue
        header = found.header
        assert pack_blob(header, found.payload) == candidate
        method = _METHODS.get(header.codec)
        if method is None or header.raw_bytes > 2**20 < len(candidate) * 2**10:
            continue
        with contextlib.suppress(BlobError):
            kv = method.decode(found.payload, header.layout, header.num_tokens, header.codec_version)
            assert (kv.layout, kv.num_tokens) == (header.layout, header.num_tokens)
            layers = getattr(method, "decode_layers", None)
            if layers is not None:
                parts = layers(found.payload, header.layout, header.num_tokens, header.codec_version)
                assert b"".join(bytes(part.tobytes_view()) for part in parts) == bytes(kv.tobytes_view())


# --- what instances say to each other ---------------------------------------------------------------------------------

_MODEL = "m"


class _Store:
    """Two chunks in one location."""

    model = _MODEL

    def __init__(self) -> None:
        self.blobs = {ChunkKey(_MODEL, number): blob_of("naive", number) for number in (1, -2)}

    async def receive(self, location: str, data: object, *, move: str = "") -> int:
        return unpack_blob(data).header.num_tokens

    async def read(self, location: str, key: ChunkKey) -> bytes | None:
        return self.blobs.get(key)

    def contents(self, location: str) -> list[ChunkKey]:
        return list(self.blobs)

    def locations(self) -> list[str]:
        return ["cpu"]


def blob_of(codec: str, number: int = 1, tokens: int = 2) -> bytes:
    """A small blob of our own making."""
    kv = small_kv(tokens, KVLayout(2, 1, 4, "float16"))
    return pack_blob(BlobHeader(codec, 1, kv.layout, tokens, ChunkKey(_MODEL, number)), _METHODS[codec].encode(kv))


def small_kv(tokens: int, layout: KVLayout) -> KVTensor:
    """KV that is the same every time."""
    values = np.random.default_rng(0).standard_normal(layout.shape(tokens))
    return KVTensor(layout, values.astype(layout.np_dtype))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _peer() -> PeerServer:
    server = PeerServer(max_blob_bytes=2**20)
    server._store = _Store()
    return server


def peer(data: bytes) -> None:
    """A peer server answers any frames with one that a client reads; a client refuses any answer that it cannot."""
    pieces = split(data)
    frames = [piece for _, piece in pieces]
    answer = decode_answer(_loop().run_until_complete(_peer()._handle(frames)))
    assert 200 <= answer.status < 600
    # What was foreseen is answered with its own status; this one says that nobody thought of it.
    assert not answer.error.startswith("internal error"), answer.error
    for decode in (decode_request, decode_answer):
        with contextlib.suppress(InvalidRequestError):
            message = decode(frames)
            assert decode([encode_message(message), *frames[1:]]) == message
    for frame in frames:
        with contextlib.suppress(InvalidRequestError):
            url = normal_peer_url(frame.decode("utf-8", "replace"))
            assert normal_peer_url(url) == url
            assert same_peer(url, url)


@cache
def _packer() -> _Packer:
    path = folder() / "segments"
    return _Packer(SegmentFolder(path), ShmOptions(directory=str(path), max_message_bytes=2**20))


SEGMENT = "0123456789abcdef-1.seg"


def transport(data: bytes) -> None:
    """Headers and refusals of the ZeroMQ transport, and messages that name places in shared memory."""
    frames = [piece for _, piece in split(data)]
    for frame in frames:
        with contextlib.suppress(InvalidRequestError):
            assert pack_header(*unpack_header(frame)) == frame
    message, hint = unpack_refusal(frames)
    assert isinstance(message, str)
    assert hint is None or isinstance(hint, str)
    packer = _packer()
    place = packer.folder.path / SEGMENT
    place.write_bytes(bytes(range(256)))
    before = set(os.listdir(packer.folder.path))
    with contextlib.suppress(TransportError):
        received = _loop().run_until_complete(packer.unpack(frames))
        assert all(len(frame) <= LARGEST_INPUT for frame in received)
    assert before - set(os.listdir(packer.folder.path)) <= {SEGMENT}


# --- cachegen's payloads ----------------------------------------------------------------------------------------------

LAYOUT = KVLayout(2, 1, 20, "float16")
CACHEGEN = (
    (CacheGen(CacheGenOptions(backend="numpy", quantizer="lmcache", anchor_delta=True)), 12),
    (CacheGen(CacheGenOptions(backend="numpy", sink_tokens=0, anchor_delta=True)), 2),
    (CacheGen(CacheGenOptions(backend="numpy", level=2)), 12),
)


def sealed_payload(payload: bytes) -> bytes:
    """``payload`` with the checks of its blocks and of its directory made right, as far as it has them."""
    head = head_size(LAYOUT)
    if len(payload) < head:
        return payload
    made = bytearray(payload)
    entries = [48 + 16 * index for index in range(LAYOUT.num_layers * LAYOUT.planes)]
    sizes = [struct.unpack_from("<II", made, entry + 8) for entry in entries]
    fixed, data = head, head + sum(size for size, _ in sizes)
    for entry, (fixed_bytes, data_bytes) in zip(entries, sizes, strict=True):
        body = bytes(made[fixed : fixed + fixed_bytes] + made[data : data + data_bytes])
        words = np.frombuffer(body + bytes(len(body) % 2), "<u2")
        struct.pack_into("<I", made, entry + 4, int(weighted_sum(words)) % 2**32)
        fixed += fixed_bytes
        data += data_bytes
    struct.pack_into("<I", made, head - 4, zlib.crc32(made[: head - 4]))
    return bytes(made)


def cachegen(data: bytes) -> None:
    """A payload is refused, or decodes to the same values whole, by layers and while its bytes arrive."""
    if not data:
        return
    method, tokens = CACHEGEN[data[0] % len(CACHEGEN)]
    for payload in (data[1:], sealed_payload(data[1:])):
        with contextlib.suppress(BlobError):
            directory = read_directory(memoryview(payload), LAYOUT, tokens)
            assert directory.size <= 2**34
        try:
            whole = bytes(method.decode(memoryview(payload), LAYOUT, tokens, 1).tobytes_view())
        except BlobError:
            whole = None
        layers: list[bytes] | None = []
        stream = LayerStream(method, LAYOUT, tokens)
        try:
            for start in range(0, len(payload), 61):
                layers += [bytes(layer.tobytes_view()) for layer in stream.feed(payload[start : start + 61])]
            stream.finish()
        except BlobError:
            layers = None
        assert whole == (None if layers is None else b"".join(layers))


# --- files and bodies -------------------------------------------------------------------------------------------------

READERS = ("mooncake", "qwen_bailian", "kv_cache_tester", "lmcache_lookup", "azure", "burstgpt")


def traces(data: bytes) -> None:
    """A file is refused by its name, or read; as Mooncake's lines it is read back as the same records."""
    path = folder() / "trace.json"
    path.write_bytes(data[1:])
    try:
        form, records = load_trace(path, READERS[data[0] % len(READERS)] if data else READERS[0])
    except InvalidRequestError as error:
        refusal, records = error.message, None
    if records is None:
        assert refusal.startswith(str(path)), refusal
        return
    for record in records:
        assert record.input_tokens == len(record.block_ids) * form.block_size + record.tail_tokens >= 1
        assert record.arrival >= 0
    path.write_bytes(b"\n".join(mooncake_lines(records, form)))
    _, again = load_trace(path, "mooncake")
    assert [record.block_ids for record in again] == [record.block_ids for record in records]


def bodies(data: bytes) -> None:
    """Bodies of the instance's HTTP interface."""
    for kind in (CompletionBody, TokenizeBody, DetokenizeBody):
        with contextlib.suppress(InvalidRequestError):
            body = decode_body(data, kind)
            if isinstance(body, CompletionBody):
                checks = (body.single_prompt, body.output_tokens, body.sampling, body.stop_strings, body.include_usage)
                for check in checks:
                    with contextlib.suppress(InvalidRequestError):
                        check()
    with contextlib.suppress(InvalidRequestError):
        decode_faults(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "messages": messages,
    "controller": controller,
    "blob": blob,
    "peer": peer,
    "transport": transport,
    "cachegen": cachegen,
    "traces": traces,
    "bodies": bodies,
}
"""Each takes one input; whatever it raises is a bug."""


def mixed(data: bytes) -> None:
    """All targets in one process: the first byte is the target's number."""
    if data:
        list(TARGETS.values())[data[0] % len(TARGETS)](data[1:])
