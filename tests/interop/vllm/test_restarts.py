"""Servers one after another on one disk tier: killed, ended, with one rank and with two."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.kv import Blob, ChunkHasher, HashSpec, unpack_blob

CHUNK = 128


class Disk:
    """A disk tier that outlives servers."""

    def __init__(self, start: Any) -> None:
        self.folder: Path = start.folder / "disk"
        tiers = [{"kind": "disk", "capacity": "1GiB", "options": {"path": str(self.folder)}}]
        # Not the default, so that no memory tier stands before the disk.
        self.configuration = start.configuration("disk", {"tiers": tiers, "store_method": "zstd"}, chunk_size=CHUNK)

    def blobs(self) -> dict[int, Blob]:
        """What is on the disk by its hash, every byte checked."""
        return {
            blob.header.key.hash: blob
            for path in self.folder.glob("*/*.blob")
            for blob in (unpack_blob(path.read_bytes()),)
        }

    def holds(self, prompt: Sequence[int]) -> bool:
        blobs = self.blobs()
        return all(digest in blobs for digest in ChunkHasher(HashSpec(chunk_size=CHUNK)).hashes(prompt))

    def damage(self, prompt: Sequence[int], chunk: int) -> None:
        """Change a byte in the middle of a chunk's payload."""
        digest = ChunkHasher(HashSpec(chunk_size=CHUNK)).hashes(prompt)[chunk]
        [path] = [
            path for path in self.folder.glob("*/*.blob") if unpack_blob(path.read_bytes()).header.key.hash == digest
        ]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)


@pytest.fixture(scope="module")
def disk(module_start: Any) -> Disk:
    return Disk(module_start)


@pytest.mark.exercises("vLLM: its own prefix caching on, and ours behind it")
@pytest.mark.exercises("vLLM: killed (SIGKILL) under load: no blob on disk is damaged")
def test_killed(
    vllm_env: Any, module_start: Any, servers: Any, prompts: Any, disk: Disk, expected: dict[str, list[int]]
) -> None:
    server = module_start.start(disk.configuration, "--block-size", "32", environment={"VLLM_SERVER_DEV_MODE": "1"})
    prompt = prompts.CATALOG["with vllm's own"]
    cold = server.complete(prompt, 16)
    server.until(lambda: disk.holds(prompt), "its chunks on the disk")
    own = server.complete(prompt, 16)
    hits = "lmcache:num_hit_tokens_total"
    # vLLM has the whole blocks of the prompt itself, we have the tokens behind them.
    assert own.cached == 599
    assert own.said["cached_tokens_by_location"] == {servers.DISK: 599 - 576}
    server.until_metric(hits, lambda value: value == 599 - 576)
    assert server.http.post("/reset_prefix_cache").status_code == 200
    ours = server.complete(prompt, 16)
    assert ours.cached == 599
    assert ours.said["cached_tokens_by_location"] == {servers.DISK: 599}
    server.until_metric(hits, lambda value: value == 2 * 599 - 576)
    assert cold.tokens == own.tokens == ours.tokens == expected["with vllm's own"][:16]

    one_rank = prompts.CATALOG["one rank"]
    assert server.complete(one_rank, 16).tokens == expected["one rank"][:16]
    server.until(lambda: disk.holds(one_rank), "its chunks on the disk")
    names = [name for name in prompts.CATALOG if name.startswith("load")]
    load = servers.Background(server, [prompts.prompt(f"killed {number}", 400) for number in range(50)], 2)
    with load:
        load.more(5)
        server.stop(signal.SIGKILL)
    assert len(disk.blobs()) > len(names)  # each of them whole


@pytest.mark.exercises("vLLM: two tensor parallel ranks share one instance")
@pytest.mark.exercises("vLLM: one rank -> blobs -> two ranks")
@pytest.mark.exercises("vLLM: ended by SIGTERM: what was stored is whole")
def test_two_ranks(
    vllm_env: Any, module_start: Any, servers: Any, prompts: Any, disk: Disk, expected: dict[str, list[int]]
) -> None:
    server = module_start.start(
        disk.configuration,
        *("--no-enable-prefix-caching", "--tensor-parallel-size", "2"),
        environment=servers.RANKS,
    )
    one_rank, two_ranks = prompts.CATALOG["one rank"], prompts.CATALOG["two ranks"]
    read = server.complete(one_rank, 16)
    assert read.cached == 499
    assert read.tokens == expected["one rank"][:16]
    cold = server.complete(two_ranks, 16)
    server.until(lambda: disk.holds(two_ranks), "its chunks on the disk")
    warm = server.complete(two_ranks, 16)
    assert [cold.cached, warm.cached] == [0, 499]
    assert cold.tokens == warm.tokens == expected["two ranks"][:16]
    layouts = {blob.header.layout for blob in disk.blobs().values()}
    assert [(layout.num_layers, layout.num_kv_heads, layout.head_dim) for layout in layouts] == [(6, 2, 64)]
    server.stop(signal.SIGTERM)
    assert disk.holds(two_ranks)


@pytest.mark.exercises("vLLM: two ranks -> blobs -> one rank")
@pytest.mark.exercises("vLLM: damaged blobs on disk are computed again")
def test_damaged(
    vllm_env: Any, module_start: Any, servers: Any, prompts: Any, disk: Disk, expected: dict[str, list[int]]
) -> None:
    server = module_start.start(disk.configuration, "--no-enable-prefix-caching", "--block-size", "64")
    read = server.complete(prompts.CATALOG["two ranks"], 16)
    assert read.cached == 499
    assert read.tokens == expected["two ranks"][:16]
    prompt = prompts.CATALOG["damaged"]
    assert server.complete(prompt, 16).tokens == expected["damaged"][:16]
    server.until(lambda: disk.holds(prompt), "its chunks on the disk")
    for chunk, cached in ((2, 256), (0, 0)):
        disk.damage(prompt, chunk)
        with_damage = server.complete(prompt, 16)
        assert with_damage.cached == cached
        assert with_damage.tokens == expected["damaged"][:16]
        server.until(lambda: disk.holds(prompt), "the chunk again")
        healed = server.complete(prompt, 16)
        assert healed.cached == 699
        assert healed.tokens == expected["damaged"][:16]
    assert server.stop(signal.SIGTERM) == 0
