"""The bitstream of version 1, read by a decoder written from docs/reference/cachegen.md alone."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions

from lmcache_kit.kv.layout import KVLayout, KVTensor

MAX_SIGMA = {15: Decimal("7.5"), 31: Decimal("15.5"), 127: Decimal(32)}
DTYPES = ("bfloat16", "float16", "float32")


def method(**options) -> CacheGen:
    return CacheGen(CacheGenOptions(backend="numpy", **options))


def sigma_of(number, levels):
    if number == 31:
        return MAX_SIGMA[levels]
    exact = Context(prec=40)
    ratio = exact.divide(MAX_SIGMA[levels], Decimal("0.27"))
    power = exact.exp(exact.divide(exact.multiply(exact.ln(ratio), Decimal(number)), Decimal(31)))
    return exact.multiply(Decimal("0.27"), power)


def table_of(number, levels):
    exact = Context(prec=40)
    sigma = sigma_of(number, levels)
    reach = levels // 2
    if levels == 127:
        reach = min(63, max(6, math.ceil(5 * sigma) + 2))
    symbols = [u for u in range(levels) if min(u, levels - u) <= reach]
    twice = exact.multiply(Decimal(2), exact.multiply(sigma, sigma))
    weights = [exact.exp(exact.divide(Decimal(-(min(u, levels - u) ** 2)), twice)) for u in symbols]
    total = sum(Fraction(weight) for weight in weights)
    free = 1024 - len(symbols)
    shares = [free * Fraction(weight) / total for weight in weights]
    parts = [int(share) for share in shares]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - shares[i], i))
    for i in order[: free - sum(parts)]:
        parts[i] += 1
    frequencies = [0] * levels
    for u, part in zip(symbols, parts, strict=True):
        frequencies[u] = part + 1
    return frequencies


def gain_of(number):
    sigma = float(sigma_of(number, 127))
    halves = [k + 0.5 for k in range(400)]
    cross = 2 * sum(sigma / math.sqrt(2 * math.pi) * math.exp(-h * h / (2 * sigma * sigma)) for h in halves)
    square = 2 * sum(2 * h * math.erfc(h / sigma / math.sqrt(2)) / 2 for h in halves)
    return min(256, round(256 * cross / square))


def read_bits(data, count, width):
    number = int.from_bytes(data, "little")
    return [number >> width * place & (1 << width) - 1 for place in range(count)]


class Part:
    """Takes sections off a part."""

    def __init__(self, part):
        self.part = part

    def take(self, size):
        whole = -(-size // 4) * 4
        head, self.part = self.part[:whole], self.part[whole:]
        assert len(head) == whole
        assert not any(head[size:])
        return head[:size]

    def packed(self, count, width):
        return read_bits(self.take((count * width + 7) // 8), count, width)

    def integers(self, count, code):
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code))))


def floats_of(data, dtype):
    """Values of little-endian bytes as float32, exactly."""
    if dtype == 0:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, ("<f2", "<f4")[dtype - 1]).astype(np.float32)


def decode_words(part, data, numbers, tokens, channels, fold, group, levels, counts, states):
    lanes = channels // fold
    words = list(struct.unpack(f"<{sum(counts)}H", data[: 2 * sum(counts)]))
    assert len(data) == -(-2 * sum(counts) // 4) * 4
    runs = []
    for count in counts:
        runs.append(words[:count])
        words = words[count:]
    tables = {number: table_of(number, levels) for number in set(numbers)}
    coded = np.zeros((tokens, channels), np.int64)
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
            coded[step // fold, channel] = u
    assert set(states) == {2**16}
    assert not any(runs)
    assert not part.part
    return coded


def decode_by_the_document(payload):
    fields = struct.unpack("<4sBBBBHHHHIIIBBBB16s", payload[:48])
    magic, quantizer, dtype, planes, bits, layers, heads, dim, group, tokens, fold = fields[:11]
    refined, refine_bits, anchors, offset_bytes, exponent_bytes, fingerprint = fields[11:]
    assert (magic, bits, fingerprint) == (b"CGKV", 10, bytes(16))
    channels, blocks = heads * dim, layers * planes
    end = 48 + 16 * blocks
    assert zlib.crc32(payload[:end]) == struct.unpack("<I", payload[end : end + 4])[0]
    entries = [struct.unpack("<BBHIII", payload[48 + 16 * b : 64 + 16 * b]) for b in range(blocks)]
    fixed_at = end + 4
    data_at = fixed_at + sum(entry[4] for entry in entries)
    size = (2, 2, 4)[dtype]
    out = []
    for mode, levels, inverse_bits, check, fixed_size, data_size in entries:
        fixed, data = payload[fixed_at : fixed_at + fixed_size], payload[data_at : data_at + data_size]
        fixed_at, data_at = fixed_at + fixed_size, data_at + data_size
        words = struct.unpack(f"<{len(fixed + data) // 2}H", fixed + data)
        assert sum(word * (2 * i + 1) for i, word in enumerate(words)) % 2**32 == check
        part = Part(fixed)
        if mode == 3:
            assert not fixed + data
            out.append(np.zeros((tokens, channels), np.float32))
            continue
        if mode == 0:
            raw = Part(data).take(tokens * channels * size)
            out.append(floats_of(raw, dtype).reshape(tokens, channels))
            continue
        width = levels.bit_length()
        if quantizer == 0:
            maxima = floats_of(part.take(tokens * size), dtype)
            centres = part.packed(channels, width) if mode == 2 else None
        else:
            exponents = part.integers(tokens, "B") if exponent_bytes else [0] * tokens
            offsets = part.integers(channels, "bh"[offset_bytes - 1])
        if mode == 2:
            numbers = part.packed(channels, 5)
            flags = part.packed(channels, 1) if anchors else [0] * channels
            counts = part.integers(-(-(channels // fold) // group), "I")
            states = part.integers(channels // fold, "I")
        finer = np.array(part.packed(refined * channels, refine_bits) if refined else []).reshape(refined, channels)
        if mode == 2:
            u = decode_words(part, data, numbers, tokens, channels, fold, group, levels, counts, states)
            for c in np.flatnonzero(flags):
                for t in range(tokens):
                    if t % anchors:
                        u[t, c] = (u[t, c] + u[t - t % anchors, c]) % levels
        else:
            u = np.array(read_bits(data, tokens * channels, width)).reshape(tokens, channels)
        if quantizer == 0:
            symbols = (u + np.array(centres)) % levels if mode == 2 else u
            middle = np.float32(levels // 2)
            out.append((symbols.astype(np.float32) - middle) / middle * maxima[:, None])
            continue
        s = np.where(u > 63, u - 127, u)
        gains = np.array([gain_of(n) for n in numbers] if mode == 2 else [256] * channels)
        scale = 2 ** np.array(exponents, dtype=np.int64)[:, None]
        number = np.array(offsets) + gains / 256 * s * scale
        number[:refined] = np.array(offsets) + (s[:refined] + (finer + 0.5) / 2**refine_bits - 0.5) * scale[:refined]
        step = np.float32(1) / np.array([inverse_bits << 16], np.uint32).view(np.float32)[0]
        assert np.array_equal(number.astype(np.float32), number)
        out.append(number.astype(np.float32) * step)
    assert data_at == len(payload)
    return {entry[0] for entry in entries}, np.stack(out).reshape(layers, planes, tokens, heads, dim)


def made_of_integers(layout, tokens):
    """KV that is the same on every machine and with every numpy: sums of small integers from a fixed recurrence."""
    state, values = 12345, []
    for _ in range(int(np.prod(layout.shape(tokens)))):
        total = 0
        for _ in range(4):
            state = (state * 1103515245 + 12345) % 2**31
            total += state >> 24
        values.append(total - 254)
    return KVTensor(layout, np.array(values, dtype=np.float32).reshape(layout.shape(tokens)).astype(layout.np_dtype))


def check(kv, **options):
    codec = method(**options)
    payload = codec.encode(kv)
    modes, values = decode_by_the_document(payload)
    decoded = codec.decode(memoryview(payload), kv.layout, kv.num_tokens, 1)
    with np.errstate(invalid="ignore"):
        wanted = values.astype(kv.layout.np_dtype)
    assert np.array_equal(decoded.data.view(f"u{wanted.itemsize}"), wanted.view(f"u{wanted.itemsize}"))
    return modes, payload


@pytest.mark.parametrize(
    ("layout", "tokens", "options"),
    [
        (KVLayout(11, 2, 4, "float16"), 37, {"quantizer": "lmcache"}),
        (KVLayout(11, 2, 4, "bfloat16"), 37, {"quantizer": "lmcache", "anchor_delta": True}),
        (KVLayout(1, 1, 70, "float32", planes=1), 30, {"quantizer": "lmcache"}),
        (KVLayout(2, 2, 4, "bfloat16"), 90, {"level": 1}),
        (KVLayout(2, 2, 4, "float16"), 90, {"level": 2, "anchor_delta": True}),
        (KVLayout(2, 2, 4, "float32"), 91, {"level": 3}),
        (KVLayout(1, 1, 70, "float16", planes=1), 45, {}),
        (KVLayout(1, 1, 38, "float16", planes=1), 90, {"sink_tokens": 0}),
        (KVLayout(2, 1, 9, "bfloat16"), 131, {"level": 5, "sink_tokens": 7, "anchor_delta": True}),
        (KVLayout(2, 1, 9, "bfloat16"), 131, {"level": 6}),
        (KVLayout(1, 3, 3, "float16"), 4, {}),
    ],
)
def test_the_document_suffices_to_decode(layout, tokens, options):
    kv = made_of_integers(layout, tokens)
    kv.data[0, 0, tokens // 2] *= 50  # an outlier among the tokens: exponents
    if layout.num_layers > 1:
        kv.data[-1, -1, 0, 0, 0] = np.inf
        if options.get("anchor_delta"):
            kv.data[0, -1, :, 0] = np.linspace(-100, 100, tokens)[:, None]  # flags
    modes, _ = check(kv, **options)
    assert layout.num_layers == 1 or 0 in modes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("quantizer", "tokens"), [("lmcache", 30), ("uniform", 2)])
def test_the_document_suffices_for_every_mode(quantizer, tokens, dtype):
    layout = KVLayout(2, 1, 40, dtype)
    kv = made_of_integers(layout, tokens)
    kv.data[0, 0, 1:] = kv.data[0, 0, :1]
    kv.data[1, 0] = -0.0
    kv.data[0, 1] = np.random.default_rng(0).integers(-15, 16, kv.data[0, 1].shape)  # evenly: nothing to gain by coding
    kv.data[1, 1, 0, 0, 0] = np.nan
    modes, _ = check(kv, quantizer=quantizer, sink_tokens=None if quantizer == "lmcache" else 0)
    assert modes == {0, 1, 2, 3}


def test_offsets_and_exponents_are_as_wide_as_the_widest_needs():
    layout = KVLayout(2, 1, 8, "float32")
    kv = made_of_integers(layout, 400)
    narrow = check(kv)[1]
    assert (narrow[30], narrow[31]) == (1, 0)
    kv.data[1, 0, :, 0, 3] += 100_000
    wide = check(kv)[1]
    assert (wide[30], wide[31]) == (2, 0)
    kv.data[0, 0, 5, 0, 2] *= 1000
    both = check(kv)[1]
    assert (both[30], both[31]) == (2, 1)


# A new digest means a new version of the format, or an encoder that chooses differently within this one.
@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({"quantizer": "lmcache"}, "65316519815af84d"),
        ({"level": 2}, "2b4dab04e8623ab9"),
        ({"anchor_delta": True}, "4bdb5f11e468b8c5"),
    ],
)
def test_payloads_of_version_1_never_change(options, digest):
    payload = method(**options).encode(made_of_integers(KVLayout(11, 2, 24, "float16"), 40))
    assert hashlib.sha256(payload).hexdigest()[:16] == digest
