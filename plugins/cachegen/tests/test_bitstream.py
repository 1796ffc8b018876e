"""The bitstream of version 1, read by a decoder written from docs/reference/cachegen.md alone."""

from __future__ import annotations

import hashlib
import struct
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.plugin import CacheGenOptions

from lmcache_kit.kv.layout import KVLayout, KVTensor

METHOD = CacheGen(CacheGenOptions())


def table_of(number, levels):
    exact = Context(prec=40)
    ratio = exact.divide(exact.multiply(Decimal("0.5"), Decimal(levels)), Decimal("0.27"))
    power = exact.exp(exact.divide(exact.multiply(exact.ln(ratio), Decimal(number)), Decimal(31)))
    deviation = exact.multiply(Decimal("0.27"), power)
    twice = exact.multiply(Decimal(2), exact.multiply(deviation, deviation))
    weights = [exact.exp(exact.divide(Decimal(-(min(u, levels - u) ** 2)), twice)) for u in range(levels)]
    total = sum(Fraction(weight) for weight in weights)
    shares = [(1024 - levels) * Fraction(weight) / total for weight in weights]
    frequencies = [int(share) for share in shares]
    order = sorted(range(levels), key=lambda u: (int(shares[u]) - shares[u], u))
    for u in order[: 1024 - levels - sum(frequencies)]:
        frequencies[u] += 1
    return [frequency + 1 for frequency in frequencies]


def read_bits(data, count, width):
    number = int.from_bytes(data, "little")
    return [number >> width * place & (1 << width) - 1 for place in range(count)]


class Reader:
    """Takes bytes off a body."""

    def __init__(self, body):
        self.body = body

    def take(self, size):
        head, self.body = self.body[:size], self.body[size:]
        assert len(head) == size
        return head

    def packed(self, count, width):
        return read_bits(self.take((count * width + 7) // 8), count, width)

    def words(self, count, size):
        return list(struct.unpack(f"<{count}{'IH'[size == 2]}", self.take(count * size)))


def decode_symbols(reader, tokens, channels, fold, group, levels):
    width = levels.bit_length()
    centres, numbers = reader.packed(channels, width), reader.packed(channels, 5)
    lanes = channels // fold
    counts = reader.words(-(-lanes // group), 4)
    states = reader.words(lanes, 4)
    runs = [reader.words(count, 2) for count in counts]
    tables = {number: table_of(number, levels) for number in set(numbers)}
    symbols = np.zeros((tokens, channels), np.uint8)
    for step in range(tokens * fold):
        for lane in range(lanes):
            channel = step % fold * lanes + lane
            frequencies = tables[numbers[channel]]
            slot, u, start = states[lane] % 1024, 0, 0
            while slot >= start + frequencies[u]:
                start += frequencies[u]
                u += 1
            x = frequencies[u] * (states[lane] // 1024) + slot - start
            if x < 2**16:
                x = x * 2**16 + runs[lane // group].pop(0)
            states[lane] = x
            symbols[step // fold, channel] = (u + centres[channel]) % levels
    assert set(states) == {2**16}
    assert not any(runs)
    return symbols


def decode_by_the_document(payload):
    magic, quantizer, dtype, planes, bits, layers, heads, dim, group, tokens, fold = struct.unpack(
        "<4sBBBBHHHHII", payload[:24]
    )
    assert (magic, quantizer, dtype, bits) == (b"CGKV", 0, 1, 10)
    channels, blocks = heads * dim, layers * planes
    place = 24 + 16 * blocks + 4
    modes, out = [], []
    for block in range(blocks):
        mode, levels, _, _, length = struct.unpack("<BBHIQ", payload[24 + 16 * block :][:16])
        reader = Reader(payload[place : place + length])
        place += length
        modes.append(mode)
        if mode == 0:
            out.append(np.frombuffer(reader.take(2 * tokens * channels), "<f2").reshape(tokens, channels))
            continue
        maxima = np.frombuffer(reader.take(2 * tokens), "<f2").astype(np.float32)
        if mode == 1:
            symbols = np.array(reader.packed(tokens * channels, levels.bit_length())).reshape(tokens, channels)
        else:
            symbols = decode_symbols(reader, tokens, channels, fold, group, levels)
        middle = np.float32(levels // 2)
        out.append(((symbols.astype(np.float32) - middle) / middle * maxima[:, None]).astype(np.float16))
        assert not reader.body
    assert place == len(payload)
    return modes, np.stack(out).reshape(layers, planes, tokens, heads, dim)


def made_of_integers(layout, tokens):
    """KV that is the same on every machine and with every numpy: sums of small integers from a fixed recurrence."""
    state, values = 12345, []
    for _ in range(layout.nbytes(tokens) // 2):
        total = 0
        for _ in range(4):
            state = (state * 1103515245 + 12345) % 2**31
            total += state >> 24
        values.append(total - 254)
    return KVTensor(layout, np.array(values, dtype=np.float16).reshape(layout.shape(tokens)))


@pytest.mark.parametrize(
    ("layout", "tokens"),
    [
        (KVLayout(11, 2, 4, "float16"), 37),
        (KVLayout(1, 1, 70, "float16", planes=1), 30),
        (KVLayout(1, 3, 3, "float16"), 4),
    ],
)
def test_the_document_suffices_to_decode(layout, tokens):
    kv = made_of_integers(layout, tokens)
    kv.data[-1, -1, 0, 0, 0] = np.inf
    payload = METHOD.encode(kv)
    modes, values = decode_by_the_document(payload)
    assert modes[-1] == 0
    decoded = METHOD.decode(memoryview(payload), layout, tokens, 1)
    assert np.array_equal(decoded.data, values)


def test_the_document_suffices_for_every_mode():
    layout = KVLayout(2, 1, 40, "float16")
    kv = made_of_integers(layout, 30)
    kv.data[0, 0] = 1
    kv.data[0, 1] = np.random.default_rng(0).integers(-15, 16, kv.data[0, 1].shape)  # evenly: nothing to gain by coding
    kv.data[1, 1, 0, 0, 0] = np.nan
    payload = METHOD.encode(kv)
    modes, values = decode_by_the_document(payload)
    assert set(modes) == {0, 1, 2}
    decoded = METHOD.decode(memoryview(payload), layout, 30, 1)
    assert decoded.data.tobytes() == values.tobytes()


# A new digest means a new version of the format, or an encoder that chooses differently within this one.
def test_payloads_of_version_1_never_change():
    payload = METHOD.encode(made_of_integers(KVLayout(11, 2, 24, "float16"), 40))
    assert hashlib.sha256(payload).hexdigest()[:16] == "332315135e0182f1"
