"""The stored blob: a versioned, self-describing, checksummed container of one chunk's encoded KV.

docs/reference/blob.md documents it byte by byte. All integers are little-endian. No length is trusted before it
is checked against the bytes at hand, and nothing in a blob is ever executed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import blake3

from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import DTYPES, KVLayout

__all__ = ["BLOB_VERSION", "MAGIC", "Blob", "BlobHeader", "blob_size", "pack_blob", "peek_header", "unpack_blob"]

MAGIC = b"LKVB"
BLOB_VERSION = 1
DIGEST_SIZE = 16

# magic, container version, header length | codec version, dtype, planes | layers, heads, head dim | tokens |
# uncompressed size, payload size | payload digest | lengths of codec name and key name; H after a group: reserved
_FIXED = struct.Struct("<4sHH HBB HHHH I QQ 16s BBH")
_CRC = struct.Struct("<I")
MAX_TOKENS = 2**32 - 1
MAX_RAW_BYTES = 2**64 - 1


@dataclass(frozen=True, slots=True)
class BlobHeader:
    """What a blob says of itself.

    Args:
        codec: name of the compression method that wrote the payload (``naive`` for raw KV).
        codec_version: version of that method's payload format, 0 to 65,535.
        layout: shape of the decoded KV, tokens apart.
        num_tokens: T of the decoded KV.
        key: whose KV it is; carries the model fingerprint.
        payload_bytes: length of the payload.
    """

    codec: str
    codec_version: int
    layout: KVLayout
    num_tokens: int
    key: ChunkKey
    payload_bytes: int = 0

    @property
    def raw_bytes(self) -> int:
        """Size of the KV when decoded."""
        return self.layout.nbytes(self.num_tokens)


@dataclass(frozen=True, slots=True)
class Blob:
    """A verified blob; ``payload`` is a view into the bytes it was read from."""

    header: BlobHeader
    payload: memoryview


def blob_size(codec: str, name: str, payload_bytes: int) -> int:
    """Bytes of a blob with a payload of so many, of a key called ``name``; both names are ASCII."""
    return _FIXED.size + len(codec) + len(name) + _CRC.size + payload_bytes


def pack_blob(header: BlobHeader, payload: Any) -> bytes:
    """Header and payload as one contiguous blob; bytes, because a memory backend keeps this very object.

    ``payload`` is any bytes-like object; ``header.payload_bytes`` is ignored and written from the payload.
    Raises InvalidRequestError when a header field does not fit its place.
    """
    view = memoryview(payload).cast("B")
    codec, key = header.codec.encode(), header.key.name().encode()
    if not 1 <= len(codec) <= 255 or not 1 <= len(key) <= 255:
        raise InvalidRequestError("codec name and key name must have 1 to 255 bytes each")
    if not 0 <= header.codec_version <= 0xFFFF or not 0 <= header.num_tokens <= MAX_TOKENS:
        raise InvalidRequestError("codec version and token count must fit 16 and 32 bits")
    if header.raw_bytes > MAX_RAW_BYTES:
        raise InvalidRequestError("the size of the KV must fit 64 bits")
    head_size = _FIXED.size + len(codec) + len(key) + _CRC.size
    head = bytearray(head_size)
    layout = header.layout
    _FIXED.pack_into(
        head,
        0,
        MAGIC,
        BLOB_VERSION,
        head_size,
        header.codec_version,
        DTYPES.index(layout.dtype),
        layout.planes,
        layout.num_layers,
        layout.num_kv_heads,
        layout.head_dim,
        0,
        header.num_tokens,
        header.raw_bytes,
        len(view),
        blake3.blake3(view).digest(DIGEST_SIZE),
        len(codec),
        len(key),
        0,
    )
    names_end = head_size - _CRC.size
    head[_FIXED.size : names_end] = codec + key
    _CRC.pack_into(head, names_end, zlib.crc32(memoryview(head)[:names_end]))
    return b"".join((head, view))


def peek_header(data: Any) -> BlobHeader:
    """The header of a blob after checking the header alone. Raises BlobError when it is damaged or truncated."""
    return _read_header(memoryview(data).cast("B"))[0]


def unpack_blob(data: Any) -> Blob:
    """The blob in ``data`` after checking every byte of it.

    Raises BlobError, naming what is wrong, for anything but one whole undamaged blob.
    """
    view = memoryview(data).cast("B")
    header, head_size, digest = _read_header(view)
    payload = view[head_size:]
    if len(payload) != header.payload_bytes:
        raise BlobError(f"blob carries {len(payload)} payload bytes, its header announces {header.payload_bytes}")
    if blake3.blake3(payload).digest(DIGEST_SIZE) != digest:
        raise BlobError(f"payload of blob {header.key.name()} is damaged: its checksum differs")
    return Blob(header, payload)


def _read_header(view: memoryview) -> tuple[BlobHeader, int, bytes]:
    if len(view) < _FIXED.size + _CRC.size:
        raise BlobError(f"{len(view)} bytes are too few for a blob header")
    (
        magic,
        version,
        head_size,
        codec_version,
        dtype,
        planes,
        layers,
        heads,
        head_dim,
        reserved,
        num_tokens,
        raw_bytes,
        payload_bytes,
        digest,
        codec_len,
        key_len,
        reserved_too,
    ) = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise BlobError(f"not a blob: it starts with {bytes(magic)!r}, not {MAGIC!r}")
    if version != BLOB_VERSION:
        raise BlobError(
            f"blob version {version} is not readable, this build reads version {BLOB_VERSION}",
            hint="drop the object or read it with the release that wrote it",
        )
    if head_size != _FIXED.size + codec_len + key_len + _CRC.size or head_size > len(view):
        raise BlobError(f"blob header of {head_size} bytes does not fit its names or the {len(view)} bytes at hand")
    names_end = head_size - _CRC.size
    if zlib.crc32(view[:names_end]) != _CRC.unpack_from(view, names_end)[0]:
        raise BlobError("blob header is damaged: its checksum differs")
    if reserved or reserved_too:
        raise BlobError("blob header holds something where this version has nothing")
    names = bytes(view[_FIXED.size : names_end])
    try:
        codec = names[:codec_len].decode()
        key = ChunkKey.parse(names[codec_len:].decode())
        if dtype >= len(DTYPES):
            raise InvalidRequestError(f"dtype number {dtype} is unknown")
        layout = KVLayout(layers, heads, head_dim, DTYPES[dtype], planes)
    except (UnicodeDecodeError, InvalidRequestError) as error:
        raise BlobError(f"blob header holds an impossible value: {error}") from None
    if not codec or raw_bytes != layout.nbytes(num_tokens):
        raise BlobError("blob header contradicts itself: size, layout and token count do not agree")
    return BlobHeader(codec, codec_version, layout, num_tokens, key, payload_bytes), head_size, digest
