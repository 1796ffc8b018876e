"""docs/reference/blob.md: the example is the bytes that the code writes, and the table is how they are read."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import blake3

from lmcache_kit.kv import unpack_blob

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "blob.md").read_text()


def example() -> bytes:
    block = re.search(r"^```hex\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None
    data = bytearray()
    for line in block[1].splitlines():
        offset, _, digits = line.partition("  ")
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(digits)
    return bytes(data)


def test_the_code_on_the_page_writes_the_bytes_on_the_page() -> None:
    code = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)
    assert names["blob"] == example()


def test_the_table_of_the_page_reads_the_example() -> None:
    """Field by field, from the offsets and sizes in the table and nothing else."""
    data = example()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([^|]+) \|", PAGE, re.MULTILINE)
    fields = {
        name.strip(): data[int(at) : int(at) + int(size)] for at, size, name in rows if name.strip() != "reserved"
    }
    assert sum(int(size) for _, size, _ in rows) == 60
    assert [int(at) for at, _, _ in rows] == [sum(int(size) for _, size, _ in rows[:i]) for i in range(len(rows))]
    number = {name: int.from_bytes(value, "little") for name, value in fields.items()}
    assert fields["magic"] == b"LKVB"
    assert number["container version"] == 1
    assert number["codec version"] == 1
    assert number["dtype"] == 1
    assert (number["planes"], number["layers"], number["KV heads"], number["head dimension"]) == (2, 1, 1, 2)
    assert number["tokens"] == 2
    assert number["uncompressed size"] == 1 * 2 * 2 * 1 * 2 * 2
    codec_end = 60 + number["codec name size"]
    key_end = codec_end + number["key name size"]
    assert data[60:codec_end] == b"naive"
    assert data[codec_end:key_end] == b"tiny.nff"
    assert number["header size"] == key_end + 4
    assert struct.unpack_from("<I", data, key_end)[0] == zlib.crc32(data[:key_end]) == 0xCDBDA0DB
    payload = data[key_end + 4 :]
    assert len(payload) == number["payload size"]
    assert blake3.blake3(payload).digest()[:16] == fields["payload digest"]
    assert struct.unpack("<8e", payload) == tuple(range(8))
    assert unpack_blob(data).header.key.hash == -255
