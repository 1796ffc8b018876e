"""The stored blob: what fits into it, and every way to damage a small one."""

import struct
import zlib

import blake3
import pytest

from lmcache_kit.errors import BlobError, InvalidRequestError
from lmcache_kit.kv import BlobHeader, ChunkKey, KVLayout, pack_blob, peek_header, unpack_blob
from lmcache_kit.kv.blob import BLOB_VERSION, MAGIC

LAYOUT = KVLayout(1, 1, 2, "float16", planes=1)
HEADER = BlobHeader("zstd", 7, LAYOUT, 3, ChunkKey("m", -5))


def small():
    """A blob that a test may damage."""
    return bytearray(pack_blob(HEADER, b"payload"))


def with_field(offset, form, value):
    """A blob with one header field changed and the header's checksum made right again."""
    blob = small()
    struct.pack_into(form, blob, offset, value)
    end = struct.unpack_from("<H", blob, 6)[0] - 4
    struct.pack_into("<I", blob, end, zlib.crc32(blob[:end]))
    return blob


def test_what_goes_in_comes_out():
    blob = unpack_blob(small())
    assert bytes(blob.payload) == b"payload"
    assert blob.header == BlobHeader("zstd", 7, LAYOUT, 3, ChunkKey("m", -5), 7)
    assert blob.header.raw_bytes == 12
    assert peek_header(small()) == blob.header


def test_the_payload_is_a_view_and_not_a_copy():
    data = small()
    blob = unpack_blob(data)
    assert blob.payload.obj is data
    assert len(blob.payload) == 7


def test_every_single_flipped_bit_is_found():
    good = small()
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            with pytest.raises(BlobError):
                unpack_blob(bad)


def test_every_truncation_and_every_extension_is_found():
    good = bytes(small())
    for length in range(len(good)):
        with pytest.raises(BlobError):
            unpack_blob(good[:length])
    for more in (b"\0", b"payload", good):
        with pytest.raises(BlobError, match="payload bytes"):
            unpack_blob(good + more)
        with pytest.raises(BlobError):
            unpack_blob(more[:1] + good)


def test_swapped_and_repeated_parts_are_found():
    one, other = small(), pack_blob(HEADER, b"PAYLOAD")
    head = len(one) - 7
    with pytest.raises(BlobError, match=r"payload of blob m\.n5 is damaged"):
        unpack_blob(one[:head] + other[head:])


def test_peeking_checks_the_header_alone():
    blob = small()
    blob[-1] ^= 1
    assert peek_header(blob) == peek_header(small())
    assert peek_header(small()[:-7]).payload_bytes == 7
    with pytest.raises(BlobError):
        peek_header(small()[:-8])


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (0, "<4s", b"PK\x03\x04", "not a blob"),
        (4, "<H", BLOB_VERSION + 1, "version 2 is not readable"),
        (4, "<H", 0, "version 0 is not readable"),
        (10, "<B", 3, "dtype number 3"),
        (10, "<B", 255, "dtype number 255"),
        (11, "<B", 0, "planes"),
        (11, "<B", 2, "contradicts itself"),
        (12, "<H", 0, "num_layers"),
        (12, "<H", 2, "contradicts itself"),
        (14, "<H", 0, "num_kv_heads"),
        (16, "<H", 0, "head_dim"),
        (18, "<H", 1, "nothing"),
        (20, "<I", 4, "contradicts itself"),
        (20, "<I", 2**32 - 1, "contradicts itself"),
        (24, "<Q", 2**64 - 1, "contradicts itself"),
        (32, "<Q", 2**64 - 1, "announces 18446744073709551615"),
        (32, "<Q", 6, "announces 6"),
        (40, "<16s", bytes(16), "payload of blob"),
        (58, "<H", 1, "nothing"),
        (60, "<4s", b"\xff\xfe\xfd\xfc", "impossible value"),
        (64, "<4s", b"../.", "impossible value"),
        (64, "<4s", b"m.n0", "impossible value"),
    ],
)
def test_a_header_with_a_right_checksum_and_a_wrong_value_is_still_refused(offset, form, value, reason):
    with pytest.raises(BlobError, match=reason):
        unpack_blob(with_field(offset, form, value))


def test_lengths_are_checked_against_the_bytes_at_hand():
    for offset, form in ((6, "<H"), (56, "<B"), (57, "<B")):
        for value in (0, 1, 3, 255):
            blob = small()
            struct.pack_into(form, blob, offset, value)
            with pytest.raises(BlobError, match="does not fit its names"):
                unpack_blob(blob)


@pytest.mark.parametrize(
    "header",
    [
        BlobHeader("", 1, LAYOUT, 1, ChunkKey("m", 1)),
        BlobHeader("x" * 256, 1, LAYOUT, 1, ChunkKey("m", 1)),
        BlobHeader("ü" * 128, 1, LAYOUT, 1, ChunkKey("m", 1)),
        BlobHeader("x", -1, LAYOUT, 1, ChunkKey("m", 1)),
        BlobHeader("x", 65_536, LAYOUT, 1, ChunkKey("m", 1)),
        BlobHeader("x", 1, LAYOUT, -1, ChunkKey("m", 1)),
        BlobHeader("x", 1, LAYOUT, 2**32, ChunkKey("m", 1)),
        BlobHeader("x", 1, LAYOUT, 1, ChunkKey("m" * 300, 1)),
        BlobHeader("x", 1, KVLayout(65_535, 65_535, 65_535, "float32", 2), 2**32 - 1, ChunkKey("m", 1)),
    ],
)
def test_what_does_not_fit_its_place_is_refused_when_packing(header):
    with pytest.raises(InvalidRequestError):
        pack_blob(header, b"")


def test_the_largest_values_fit():
    layout = KVLayout(65_535, 65_535, 65_535, "float32", 2)
    header = BlobHeader("x" * 255, 65_535, layout, 1, ChunkKey("m" * 64, 2**128 - 1))
    assert unpack_blob(pack_blob(header, b"p")).header.layout == layout
    with pytest.raises(BlobError):
        unpack_blob(b"")


def test_empty_payloads_and_payloads_of_other_item_types():
    assert bytes(unpack_blob(pack_blob(HEADER, b"")).payload) == b""
    words = memoryview(bytearray(b"12345678")).cast("H")
    assert bytes(unpack_blob(pack_blob(HEADER, words)).payload) == b"12345678"


def test_the_header_as_the_reference_page_lays_it_out():
    """An independent reading of the table in docs/reference/blob.md."""
    blob = bytes(small())
    assert blob[0:4] == MAGIC == b"LKVB"
    fields = struct.unpack_from("<HHHBBHHH", blob, 4)
    assert fields == (1, 72, 7, 1, 1, 1, 1, 2)
    assert blob[18:20] == b"\0\0"
    assert struct.unpack_from("<IQQ", blob, 20) == (3, 12, 7)
    assert blob[40:56] == blake3.blake3(b"payload").digest(16)
    assert blob[56:60] == b"\4\4\0\0"
    assert blob[60:68] == b"zstdm.n5"
    assert struct.unpack_from("<I", blob, 68)[0] == zlib.crc32(blob[:68])
    assert blob[72:] == b"payload"
