"""Why a lookup ended where it did: the chunks one by one, and for every instance the reason in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lmcache_kit.controller.contents import Contents
from lmcache_kit.controller.lookup import LookupResult, LookupTable, SpecView, bits
from lmcache_kit.controller.registry import Registry, Worker
from lmcache_kit.kv.hashing import HASH_ALGORITHMS, ChunkHasher, HashSpec, default_none_hash

__all__ = ["MAX_CHUNKS", "explain"]

MAX_CHUNKS = 1000
"""Chunks listed per hash spec; the prefixes themselves are counted to their end."""

_COMMON_CHUNK_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)


def explain(
    tokens: Sequence[int],
    result: LookupResult,
    registry: Registry,
    contents: Contents,
    table: LookupTable,
    strangers: Iterable[str],
) -> dict[str, Any]:
    """The ``explain`` object of a lookup's answer.

    ``strangers`` names workers that sent operations without being registered.
    """
    views = table.views()
    specs = [_explain_spec(tokens, spec, views.get(spec), registry, contents, table) for spec in _specs(registry)]
    hints = []
    if not registry.instances:
        hints.append("no instance is registered: start one whose controller URL names this controller's monitor port")
    hints += [
        f"operations of worker {name} were left out: it never registered; it must register or send a heartbeat"
        for name in strangers
    ]
    return {
        "num_tokens": len(tokens),
        "specs": specs,
        "instances": {
            instance_id: {
                "prefix": result.prefix.get(instance_id, 0),
                "why": _reason(tokens, instance_id, result, registry, contents),
            }
            for instance_id in registry.instances
        },
        "hints": hints,
    }


def _specs(registry: Registry) -> list[HashSpec]:
    return list(dict.fromkeys(worker.spec for worker in registry))


def _explain_spec(
    tokens: Sequence[int],
    spec: HashSpec,
    view: SpecView | None,
    registry: Registry,
    contents: Contents,
    table: LookupTable,
) -> dict[str, Any]:
    chunks = list(ChunkHasher(spec).chunks(tokens))
    mask = view.mask if view else 0
    listed = [
        {
            "index": index,
            "tokens": [start, stop],
            "key": str(key),
            "holders": _holders(contents.index.masks.get(key, 0) & mask, table),
        }
        for index, (start, stop, key) in enumerate(chunks[:MAX_CHUNKS])
    ]
    return {
        "chunk_size": spec.chunk_size,
        "hash_algorithm": spec.algorithm,
        "none_hash": str(spec.none_hash),
        "save_unfull_chunk": spec.save_unfull_chunk,
        "instances": list(dict.fromkeys(worker.instance_id for worker in registry if worker.spec == spec)),
        "num_chunks": len(chunks),
        "truncated": len(chunks) > MAX_CHUNKS,
        "chunks": listed,
        "ended": _ended(tokens, spec, [(key, contents.index.masks.get(key, 0) & mask) for *_, key in chunks], table),
    }


def _holders(mask: int, table: LookupTable) -> dict[str, list[str]]:
    holders: dict[str, list[str]] = {}
    for bit in bits(mask):
        group = table.group(bit)
        locations = holders.setdefault(group.instance_id, [])
        if group.location not in locations:
            locations.append(group.location)
    return holders


def _ended(tokens: Sequence[int], spec: HashSpec, chunks: list[tuple[int, int]], table: LookupTable) -> str:
    """Why nobody's prefix goes on, for all holders of one spec together."""
    alive = -1
    for index, (_, mask) in enumerate(chunks):
        if mask == 0:
            return f"no instance holds chunk {index}"
        if alive & mask == 0:
            group = table.group(next(bits(mask)))
            first = next(i for i, (_, earlier) in enumerate(chunks) if not earlier & mask)
            return (
                f"chunk {index} is held by {group.instance_id}/{group.location}, but that holder lacks chunk {first}"
                " and no single holder has all chunks up to it"
            )
        alive &= mask
    rest = len(tokens) % spec.chunk_size
    if rest and not spec.save_unfull_chunk:
        return f"every full chunk is held; the last {rest} tokens fill no chunk of {spec.chunk_size} and are never kept"
    return "every chunk is held" if chunks else "there are no tokens to look up"


def _reason(
    tokens: Sequence[int], instance_id: str, result: LookupResult, registry: Registry, contents: Contents
) -> str:
    workers = registry.workers(instance_id)
    held = result.prefix.get(instance_id, 0)
    spec = workers[0].spec
    servable = len(tokens) if spec.save_unfull_chunk else len(tokens) - len(tokens) % spec.chunk_size
    if held == servable:
        return "the whole prefix is held" if held else "there is nothing to look up"
    for worker in workers:
        if not worker.alive:
            return f"worker {worker.name} missed its heartbeats; what it held was dropped"
        if worker.sync_reason is not None or any(not session.complete for session in worker.syncs.values()):
            return f"worker {worker.name} is being synced ({worker.sync_reason or 'batches are coming'})"
        if not any(contents.key_counts(worker).values()):
            return f"worker {worker.name} holds no chunk that the controller knows of"
    index = held // spec.chunk_size
    chunks = list(ChunkHasher(spec).chunks(tokens))
    key = chunks[index][2]
    lacking = [worker for worker in workers if not _holds(worker, key, contents)]
    if lacking and len(lacking) < len(workers):
        return f"only some workers hold chunk {index}: {', '.join(worker.name for worker in lacking)} lack it"
    if index == 0:
        match = _matching_spec(tokens, workers[0], contents)
        if match is not None:
            return match
    start, stop, _ = chunks[index]
    text = f"chunk {index} (tokens {start} to {stop - 1}) is not held"
    if stop - start < spec.chunk_size:
        text += f"; it has {stop - start} tokens only, and a partial chunk matches just this very end of a prompt"
    elif not workers[0].announced and index == 0:
        text += (
            f"; the worker announced no hash settings, chunk size {spec.chunk_size}, {spec.algorithm} and NONE_HASH"
            f" {spec.none_hash} are assumed (see --none-hash and PYTHONHASHSEED)"
        )
    return text


def _holds(worker: Worker, key: int, contents: Contents) -> bool:
    mask = contents.index.masks.get(key, 0)
    return any(bit & mask for bit in worker.slots.values())


def _matching_spec(tokens: Sequence[int], worker: Worker, contents: Contents) -> str | None:
    """Whether the worker's keys match the first chunk under other hash settings than those it is known by."""
    seen = worker.spec
    for algorithm in HASH_ALGORITHMS:
        for none_hash in dict.fromkeys((seen.none_hash, 0, default_none_hash(algorithm))):
            for size in dict.fromkeys((seen.chunk_size, *_COMMON_CHUNK_SIZES)):
                spec = HashSpec(size, algorithm, none_hash, seen.save_unfull_chunk)
                first = next(ChunkHasher(spec).chunks(tokens[:size]), None)
                if spec != seen and first is not None and first[1] > 0 and _holds(worker, first[2], contents):
                    return (
                        f"hash settings differ: worker {worker.name} is known by chunk size {seen.chunk_size},"
                        f" {seen.algorithm}, NONE_HASH {seen.none_hash}, but its keys match chunk size {size},"
                        f" {algorithm}, NONE_HASH {none_hash}"
                    )
    return None
