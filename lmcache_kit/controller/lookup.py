"""Who holds which prefix: one pass over the chunks, crediting every holder with what it holds from token 0 on.

An instance may have several workers (tensor-parallel ranks), each holding its share of every chunk, so a chunk counts
as held by an instance only when all of its registered workers hold it. A worker that announced its locations and left
one out is not asked for there. (Models with latent attention keep one copy, and only their first rank registers.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lmcache_kit.controller.contents import Contents
from lmcache_kit.controller.registry import Registry, Worker
from lmcache_kit.kv.hashing import ChunkHasher, HashSpec

__all__ = ["Group", "LookupResult", "LookupTable", "SpecView", "bits"]


@dataclass(slots=True)
class LookupResult:
    """What a lookup found; only holders of at least one token appear.

    Args:
        num_tokens: tokens asked for.
        holders: instance -> location -> tokens held contiguously from token 0, fastest location first.
        prefix: instance -> tokens held from token 0 over all its locations together.
        layout: instance -> (location, tokens) of its best location.
    """

    num_tokens: int
    holders: dict[str, dict[str, int]] = field(default_factory=dict)
    prefix: dict[str, int] = field(default_factory=dict)
    layout: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Tokens of the longest prefix that one instance holds."""
        return max(self.prefix.values(), default=0)


@dataclass(slots=True, frozen=True)
class Group:
    """One location of one instance: the slots of all its workers.

    ``complete`` is false when a worker that should hold a share has nothing there.
    """

    instance_id: str
    location: str
    rank: int
    bits: tuple[int, ...]
    complete: bool


@dataclass(slots=True, frozen=True)
class SpecView:
    """The slots whose keys follow one hash spec: ``mask`` is their OR, ``owners`` maps a slot to its worker's mask."""

    hasher: ChunkHasher
    mask: int
    owners: dict[int, int]


def bits(mask: int) -> Iterator[int]:
    """The single bits of a mask, lowest first."""
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit


class LookupTable:
    """Answers lookups; keeps tables of the slots, made anew when slots or workers change."""

    def __init__(self, registry: Registry, contents: Contents) -> None:
        self._registry = registry
        self._contents = contents
        self._version = -1
        self._views: dict[HashSpec, SpecView] = {}
        self._hashers: dict[HashSpec, ChunkHasher] = {}
        self._groups: dict[int, Group] = {}
        self._instances: dict[str, tuple[int, ...]] = {}
        self._order: dict[str, int] = {}

    # --- lookups ------------------------------------------------------------------------------------------------------

    def lookup(self, tokens: Sequence[int]) -> LookupResult:
        """The prefixes of ``tokens`` that instances hold."""
        self._refresh()
        result = LookupResult(len(tokens))
        slots: dict[int, int] = {}
        workers: dict[int, int] = {}
        for view in self._views.values():
            keys = ((stop, key) for _, stop, key in view.hasher.chunks(tokens))
            self._walk(keys, view, slots, workers)
        if slots:
            self._credit(result, slots, workers)
        return result

    def peers(self, hashes: Sequence[int], asking: Worker) -> tuple[Worker, str, int] | None:
        """The best other instance for a worker that has the chunk hashes already: (worker, location, chunks).

        Only workers of the same rank that announced a peer URL count: a rank's share is of no use to another one.
        """
        self._refresh()
        rows = {}
        for worker in self._registry:
            if worker.worker_id == asking.worker_id and worker is not asking and worker.peer_init_url:
                order = worker.location_order()
                rows.update({bit: (worker, order.index(name)) for name, bit in worker.slots.items()})
        view = SpecView(ChunkHasher(asking.spec), sum(rows), {bit: bit for bit in rows})
        slots: dict[int, int] = {}
        self._walk(((i + 1, key) for i, key in enumerate(hashes)), view, slots, {})
        if not slots:
            return None
        best = max(slots, key=lambda bit: (slots[bit], -rows[bit][1]))
        worker = rows[best][0]
        return worker, self._groups[best].location, slots[best]

    def _walk(
        self, keys: Iterable[tuple[int, int]], view: SpecView, slots: dict[int, int], workers: dict[int, int]
    ) -> None:
        """Follow the chain of (stop, key) and note, per slot and per worker mask, where its prefix stops."""
        masks = self._contents.index.masks
        previous = alive = -1
        whole: list[int] = []
        done = 0
        for stop, key in keys:
            mask = masks.get(key, 0) & view.mask
            if mask != previous:
                if done == 0:
                    alive = mask
                    whole = list({view.owners[bit] for bit in bits(mask)})
                else:
                    for bit in bits(alive & ~mask):
                        slots[bit] = done
                    alive &= mask
                    for owner in whole:
                        if not owner & mask:
                            workers[owner] = done
                    whole = [owner for owner in whole if owner & mask]
                if not whole:
                    return
                previous = mask
            done = stop
        for bit in bits(alive) if done else ():
            slots[bit] = done
        for owner in whole:
            workers[owner] = done

    def _credit(self, result: LookupResult, slots: dict[int, int], workers: dict[int, int]) -> None:
        found: dict[str, list[tuple[int, str, int]]] = {}
        for bit, held in slots.items():
            group = self._groups[bit]
            if not group.complete or bit != group.bits[0]:  # once a group; without its first it holds nothing together
                continue
            if len(group.bits) > 1:
                held = min(slots.get(each, 0) for each in group.bits)
            if held:
                found.setdefault(group.instance_id, []).append((group.rank, group.location, held))
        touched = {self._groups[bit].instance_id for bit in slots}
        for instance_id in sorted(touched, key=self._order.__getitem__):
            masks = self._instances[instance_id]
            together = workers.get(masks[0], 0)
            if len(masks) > 1:
                together = min(together, *(workers.get(mask, 0) for mask in masks[1:]))
            if not together:
                continue
            result.prefix[instance_id] = together
            rows = sorted(found.get(instance_id, ()))
            if rows:
                result.holders[instance_id] = {location: held for _, location, held in rows}
                _, location, held = max(rows, key=lambda row: (row[2], -row[0]))
                result.layout[instance_id] = (location, held)

    # --- tables -------------------------------------------------------------------------------------------------------

    def views(self) -> dict[HashSpec, SpecView]:
        """The tables by hash spec, for explanations."""
        self._refresh()
        return self._views

    def group(self, bit: int) -> Group:
        """Whose slot a bit is."""
        return self._groups[bit]

    def _refresh(self) -> None:
        if self._version == self._contents.version:
            return
        masks: dict[HashSpec, int] = {}
        owners: dict[HashSpec, dict[int, int]] = {}
        self._groups, self._instances, self._order = {}, {}, {}
        for position, (instance_id, workers) in enumerate(self._registry.instances.items()):
            self._order[instance_id] = position
            self._add_groups(instance_id, list(workers.values()))
            worker_masks = []
            for worker in workers.values():
                mask = sum(worker.slots.values())
                worker_masks.append(mask)
                masks[worker.spec] = masks.get(worker.spec, 0) | mask
                owners.setdefault(worker.spec, {}).update(dict.fromkeys(worker.slots.values(), mask))
            self._instances[instance_id] = tuple(worker_masks)
        self._hashers = {spec: self._hashers.get(spec) or ChunkHasher(spec) for spec in masks}
        self._views = {spec: SpecView(self._hashers[spec], mask, owners[spec]) for spec, mask in masks.items()}
        self._version = self._contents.version

    def _add_groups(self, instance_id: str, workers: list[Worker]) -> None:
        order: list[str] = []
        for worker in workers:
            order.extend(name for name in worker.location_order() if name not in order)
        for rank, location in enumerate(order):
            asked = [worker for worker in workers if worker.locations is None or location in worker.locations]
            asked += [worker for worker in workers if location in worker.slots and worker not in asked]
            held = tuple(worker.slots[location] for worker in asked if location in worker.slots)
            group = Group(instance_id, location, rank, held, len(held) == len(asked))
            self._groups.update(dict.fromkeys(held, group))
