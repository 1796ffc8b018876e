"""Chunk keys against those of real LMCache, with and without vLLM (chunk_keys.json, made by capture.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.kv.hashing import HASH_ALGORITHMS, ChunkHasher, HashSpec, default_none_hash

VECTORS = json.loads(Path(__file__).with_name("chunk_keys.json").read_text())


def named(vector: dict[str, Any]) -> str:
    seed, peer = vector["PYTHONHASHSEED"], "vllm" if vector["vllm"] else "alone"
    partial = "" if vector["save_unfull_chunk"] else "-whole"
    length = len(vector.get("tokens") or range(*vector["range"]))
    return f"{vector['algorithm']}-{peer}-seed_{seed}-{vector['chunk_size']}{partial}-{length}"


@pytest.mark.parametrize("vector", VECTORS, ids=map(named, VECTORS))
def test_our_keys_are_lmcaches(vector: dict[str, Any]) -> None:
    tokens = vector.get("tokens") or list(range(*vector["range"]))
    spec = HashSpec(vector["chunk_size"], vector["algorithm"], vector["none_hash"], vector["save_unfull_chunk"])
    assert ChunkHasher(spec).hashes(tokens) == vector["keys"]


@pytest.mark.parametrize("algorithm", ["sha256_cbor", "sha256"])
@pytest.mark.parametrize("seed", ["0", "123", None])
def test_the_first_hash_is_vllms(algorithm: str, seed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of builtin hangs on the seed of the process: see tests/unit/kv/test_hashing.py."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if seed is not None:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    (want,) = {
        vector["none_hash"]
        for vector in VECTORS
        if (vector["algorithm"], vector["PYTHONHASHSEED"], vector["vllm"]) == (algorithm, seed, True)
    }
    assert default_none_hash(algorithm) == want


def test_the_vectors_cover_what_lmcache_can_do() -> None:
    assert {vector["algorithm"] for vector in VECTORS} == HASH_ALGORITHMS.keys() - {"blake3"}
    assert {vector["none_hash"] for vector in VECTORS if not vector["vllm"]} == {0}
    builtin = {v["PYTHONHASHSEED"]: v["none_hash"] for v in VECTORS if v["vllm"] and v["algorithm"] == "builtin"}
    assert (builtin["0"], builtin["123"]) == (5313149338359954478, -6197052367682486848)
    assert {vector["chunk_size"] for vector in VECTORS} == {256, 16, 7}
    of_256 = [vector for vector in VECTORS if vector["chunk_size"] == 256 and "range" in vector]
    assert {(vector["save_unfull_chunk"], len(vector["keys"])) for vector in of_256} == {(True, 3), (False, 2)}
