"""Names of chunks."""

import pytest

from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.kv import ChunkKey


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (ChunkKey("tiny-llama_1", 0), "tiny-llama_1.0"),
        (ChunkKey("m", 255), "m.ff"),
        (ChunkKey("m", -255), "m.nff"),
        (ChunkKey("m", -(2**63)), "m.n8000000000000000"),
        (ChunkKey("m", 2**64 - 1), "m.ffffffffffffffff"),
        (ChunkKey("m", 2**127), "m.8" + "0" * 31),
        (ChunkKey("n", -1), "n.n1"),
    ],
)
def test_names(key, name):
    assert key.name() == name
    assert ChunkKey.parse(name) == key


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        ".",
        "m",
        "m.",
        ".1",
        "m.g",
        "m.FF",
        "M.ff",
        "m.01",
        "m.00",
        "m.n0",
        "m.nn1",
        "m.-1",
        "m.1 ",
        "m.1\n",
        " m.1",
        "m/../x.1",
        "m.1.2",
        "m." + "f" * 33,
        "m" * 65 + ".1",
        "ü.1",
        "m.\u0661",
    ],
)
def test_anything_else_is_refused(wrong):
    with pytest.raises(InvalidRequestError, match="not a chunk name"):
        ChunkKey.parse(wrong)


def test_keys_are_ordered_hashable_and_cannot_be_changed():
    keys = [ChunkKey("b", 1), ChunkKey("a", 2), ChunkKey("a", -2)]
    assert sorted(keys) == [ChunkKey("a", -2), ChunkKey("a", 2), ChunkKey("b", 1)]
    assert len({*keys, ChunkKey("a", 2)}) == 3
    with pytest.raises(AttributeError):
        keys[0].hash = 5
