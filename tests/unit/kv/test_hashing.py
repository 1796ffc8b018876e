"""Chunk hashes: the published check vector, the chain, NONE_HASH and what may be configured."""

import os
import subprocess
import sys

import pytest

from lmcache_kit.errors import InvalidRequestError, UnknownNameError
from lmcache_kit.kv import HASH_ALGORITHMS, ChunkHasher, HashSpec, default_none_hash

# From LMCache 0.5.6: builtin hash, seed 123, chunk 256, tokens 1000..1599.
SEED_123 = -6197052367682486848
SEED_0 = 5313149338359954478
VECTOR = [4446532143507722017, -6761997240938222485, 6978284823502672967]


def in_process_with_seed(seed, code):
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_check_vector_of_lmcache():
    hasher = ChunkHasher(HashSpec(chunk_size=256, none_hash=SEED_123))
    assert hasher.hashes(range(1000, 1600)) == VECTOR


CODE = """
from lmcache_kit.kv import ChunkHasher, HashSpec, default_none_hash
print(default_none_hash("builtin"))
print(*ChunkHasher(HashSpec(none_hash=default_none_hash("builtin"))).hashes(list(range(1000, 1600))))
"""


def test_a_process_with_seed_123_finds_the_check_vector_by_itself():
    assert [int(word) for word in in_process_with_seed("123", CODE)] == [SEED_123, *VECTOR]


def test_a_process_with_seed_0_uses_the_published_none_hash():
    assert int(in_process_with_seed("0", CODE)[0]) == SEED_0


@pytest.mark.parametrize("seed", ["", "random"])
def test_without_a_numeric_seed_the_none_hash_is_zero(seed):
    assert in_process_with_seed(seed, CODE)[0] == "0"


def test_hashes_do_not_depend_on_the_seed_of_the_process_when_the_none_hash_is_given():
    code = (
        "from lmcache_kit.kv import ChunkHasher, HashSpec\n"
        "for name in ('builtin', 'sha256_cbor', 'sha256', 'blake3'):\n"
        "    print(*ChunkHasher(HashSpec(4, name, 7)).hashes([1, 2, 3, 4, 5, 128000]))"
    )
    assert in_process_with_seed("1", code) == in_process_with_seed("2", code)


@pytest.mark.parametrize("algorithm", ["sha256_cbor", "sha256", "blake3"])
def test_the_none_hash_of_the_digest_algorithms_with_a_seed(algorithm, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "123")
    seeded = default_none_hash(algorithm)
    assert 0 < seeded < 2**64
    monkeypatch.setenv("PYTHONHASHSEED", "124")
    assert default_none_hash(algorithm) != seeded
    monkeypatch.delenv("PYTHONHASHSEED")
    unseeded = {"sha256_cbor": 11230124004819357437, "sha256": 462496962774574867, "blake3": 0}
    assert default_none_hash(algorithm) == unseeded[algorithm]


def test_algorithms_and_their_other_spelling():
    assert set(HASH_ALGORITHMS) == {"builtin", "sha256_cbor", "sha256", "blake3"}
    assert HashSpec(algorithm="sha256_cbor_64bit") == HashSpec(algorithm="sha256_cbor")


def test_what_cannot_be_configured():
    with pytest.raises(InvalidRequestError, match="chunk_size must be at least 1, got 0"):
        HashSpec(chunk_size=0)
    with pytest.raises(InvalidRequestError):
        HashSpec(chunk_size=-256)
    with pytest.raises(UnknownNameError, match="hash algorithm 'sha256_cborr'") as caught:
        HashSpec(algorithm="sha256_cborr")
    assert "sha256_cbor" in caught.value.hint


def test_an_unfull_last_chunk_is_kept_only_when_the_spec_says_so():
    tokens = list(range(10))
    kept = ChunkHasher(HashSpec(chunk_size=4)).hashes(tokens)
    full = ChunkHasher(HashSpec(chunk_size=4, save_unfull_chunk=False)).hashes(tokens)
    assert len(kept) == 3
    assert full == kept[:2]
    assert ChunkHasher(HashSpec(chunk_size=4)).hashes([]) == []
    assert ChunkHasher(HashSpec(chunk_size=4, save_unfull_chunk=False)).hashes([1, 2, 3]) == []
