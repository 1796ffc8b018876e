"""Layers while bytes arrive."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_cachegen.container import head_size, read_directory
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions
from lmcache_kit_cachegen.stream import LayerStream

from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import KVLayout, KVTensor

LAYOUT, TOKENS = KVLayout(5, 2, 9, "bfloat16"), 40
METHOD = CacheGen(CacheGenOptions(backend="numpy"))


def made(layout=LAYOUT, tokens=TOKENS):
    data = np.random.default_rng(0).standard_normal(layout.shape(tokens))
    data[-1, -1] = 0
    return KVTensor(layout, data.astype(layout.np_dtype))


KV = made()
PAYLOAD = METHOD.encode(KV)
WHOLE = METHOD.decode(memoryview(PAYLOAD), LAYOUT, TOKENS, 1)
DIRECTORY = read_directory(memoryview(PAYLOAD), LAYOUT, TOKENS)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, len(PAYLOAD)), max_size=12))
def test_layers_are_those_of_the_whole_however_the_bytes_are_cut(cuts):
    places = [0, *sorted(cuts), len(PAYLOAD)]
    stream = LayerStream(METHOD, LAYOUT, TOKENS)
    layers = []
    for start, stop in itertools.pairwise(places):
        layers += stream.feed(memoryview(PAYLOAD)[start:stop])
        # Every layer is there with the last of its bytes.
        complete = sum(
            entry.data_start + entry.data_bytes <= stop
            for entry in DIRECTORY.entries[1::2]
            if stop >= DIRECTORY.data_start
        )
        assert len(layers) == stream.layers_done == complete
    stream.finish()
    assert all(layer.data.shape == (1, 2, TOKENS, 2, 9) for layer in layers)
    assert b"".join(layer.data.tobytes() for layer in layers) == WHOLE.data.tobytes()


def test_byte_by_byte():
    stream = LayerStream(METHOD, LAYOUT, TOKENS)
    layers = [layer for byte in PAYLOAD for layer in stream.feed(bytes([byte]))]
    assert len(layers) == 5
    stream.finish()


def test_the_first_layer_needs_a_small_part_of_the_bytes():
    layout = KVLayout(16, 4, 32)
    payload = METHOD.encode(made(layout, 256))
    stream = LayerStream(METHOD, layout, 256)
    entry = read_directory(memoryview(payload), layout, 256).entries[1]
    (first,) = stream.feed(payload[: entry.data_start + entry.data_bytes])
    assert first.layout.num_layers == 1
    assert entry.data_start + entry.data_bytes < len(payload) / 4


def test_a_chunk_without_tokens():
    payload = METHOD.encode(made(LAYOUT, 0))
    stream = LayerStream(METHOD, LAYOUT, 0)
    assert len(stream.feed(payload)) == 5
    stream.finish()


def test_what_ends_early_is_noticed_in_the_end():
    for size in (0, 10, head_size(LAYOUT), DIRECTORY.data_start, len(PAYLOAD) - 1):
        stream = LayerStream(METHOD, LAYOUT, TOKENS)
        stream.feed(PAYLOAD[:size])
        with pytest.raises(BlobError, match="ends within layer"):
            stream.finish()


def test_what_goes_on_is_noticed_at_once():
    with pytest.raises(BlobError, match="goes on"):
        LayerStream(METHOD, LAYOUT, TOKENS).feed(PAYLOAD + b"\0")


def test_a_damaged_header_is_noticed_with_its_last_byte():
    size = head_size(LAYOUT)
    for place in range(size):
        damaged = bytearray(PAYLOAD)
        damaged[place] ^= 1
        stream = LayerStream(METHOD, LAYOUT, TOKENS)
        assert stream.feed(damaged[: size - 1]) == []
        with pytest.raises(BlobError):
            stream.feed(damaged[size - 1 : size])


def test_another_version_is_refused():
    stream = LayerStream(METHOD, LAYOUT, TOKENS, version=2)
    with pytest.raises(BlobError, match="version 2"):
        stream.feed(PAYLOAD)


def test_the_code_in_the_document_runs(capsys):
    page = (Path(__file__).parents[3] / "docs" / "reference" / "cachegen.md").read_text()
    code = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert code is not None
    exec(code[1], {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(layer) for layer in range(1, 9)]
