"""Chunks and their hashes against a second, plain account of the rule."""

import hashlib
import pickle
import struct

import blake3
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.kv import ChunkHasher, HashSpec

tokens_of = st.lists(st.integers(0, 200_000), max_size=80)
none_hashes = st.integers(-(2**63), 2**64 - 1)


def cbor(value):
    """Canonical CBOR (RFC 8949) of integers and of tuples of such, written down from the RFC."""

    def head(major, number):
        for extra, limit, form in ((24, 2**8, ">B"), (25, 2**16, ">H"), (26, 2**32, ">I"), (27, 2**64, ">Q")):
            if number < 24:
                return bytes([major << 5 | number])
            if number < limit:
                return bytes([major << 5 | extra]) + struct.pack(form, number)
        raise AssertionError(number)

    if isinstance(value, tuple):
        return head(4, len(value)) + b"".join(map(cbor, value))
    return head(0, value) if value >= 0 else head(1, -1 - value)


def reference(tokens, size, none_hash, digest, keep_unfull):
    """Hashes chunk by chunk, with slices instead of running indices."""
    hashes = []
    while tokens and (keep_unfull or len(tokens) >= size):
        head, tokens = tokens[:size], tokens[size:]
        material = (none_hash, tuple(head), ())
        none_hash = hash(material) if digest is None else int.from_bytes(digest(material)[:8], "big")
        hashes.append(none_hash)
    return hashes


DIGESTS = {
    "builtin": None,
    "sha256_cbor": lambda chunk: hashlib.sha256(cbor(chunk)).digest(),
    "sha256": lambda chunk: hashlib.sha256(pickle.dumps(chunk, protocol=5)).digest(),
    "blake3": lambda chunk: blake3.blake3(cbor(chunk)).digest(),
}


@given(
    tokens=tokens_of,
    size=st.integers(1, 20),
    none_hash=none_hashes,
    algorithm=st.sampled_from(sorted(DIGESTS)),
    keep=st.booleans(),
)
def test_hashes_follow_the_rule(tokens, size, none_hash, algorithm, keep):
    hasher = ChunkHasher(HashSpec(size, algorithm, none_hash, keep))
    assert hasher.hashes(tokens) == reference(tokens, size, none_hash, DIGESTS[algorithm], keep)


@given(tokens=tokens_of, size=st.integers(1, 20), keep=st.booleans())
def test_chunks_cover_the_tokens_exactly_once_and_in_order(tokens, size, keep):
    chunks = list(ChunkHasher(HashSpec(size, save_unfull_chunk=keep)).chunks(tokens))
    covered = [token for start, stop, _ in chunks for token in tokens[start:stop]]
    assert covered == (tokens if keep else tokens[: len(tokens) // size * size])
    assert all(stop - start == size for start, stop, _ in chunks[:-1])
    assert all(0 < stop - start <= size for start, stop, _ in chunks)


@given(tokens=tokens_of, size=st.integers(1, 8), algorithm=st.sampled_from(sorted(DIGESTS)), data=st.data())
def test_a_shared_prefix_has_the_same_hashes_and_a_change_changes_all_that_follow(tokens, size, algorithm, data):
    hasher = ChunkHasher(HashSpec(size, algorithm))
    before = hasher.hashes(tokens)
    assert hasher.hashes([*tokens, 7, 8, 9])[: len(tokens) // size] == before[: len(tokens) // size]
    if tokens:
        position = data.draw(st.integers(0, len(tokens) - 1))
        changed = list(tokens)
        changed[position] += 1
        after = hasher.hashes(changed)
        first = position // size
        assert after[:first] == before[:first]
        assert all(one != other for one, other in zip(after[first:], before[first:], strict=True))


@given(tokens=tokens_of)
def test_any_sequence_of_integers_will_do(tokens):
    hasher = ChunkHasher(HashSpec(8))
    assert hasher.hashes(tuple(tokens)) == hasher.hashes(tokens)
