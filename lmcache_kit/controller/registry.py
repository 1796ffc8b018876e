"""Who is there: instances, their workers, and what each worker said of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lmcache_kit.clock import Clock
from lmcache_kit.controller.session import SyncSession
from lmcache_kit.errors import CapacityError, UnknownNameError
from lmcache_kit.kv.hashing import HashSpec
from lmcache_kit.messages import HeartbeatMsg, RegisterMsg

__all__ = ["MAX_WORKERS", "Registry", "Worker", "WorkerId", "announced_spec"]

MAX_WORKERS = 16384
"""A bound on what strangers can make the controller remember."""

_MEMORY = "LocalCPUBackend"
"""LMCache's workers announce no order of their locations; this one is their fastest, whichever reported first."""

WorkerId = tuple[str, int]
"""``(instance id, worker id)``."""


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One worker (one rank of an instance).

    Args:
        spec: how it names its chunks; the controller's default when it announced nothing.
        announced: whether it announced its ``spec``.
        methods: compression methods it announced, or None.
        locations: locations it announced, fastest first, or None.
        generation: grows with every registration, so that connections to an earlier life are not used.
        registered_at: calendar time of the last registration, seconds since 1970.
        heartbeat_at: calendar time of the last heartbeat, or None when none ever came.
        seen_at: reading of the clock at the last registration or heartbeat.
        beat_seconds: time between its last two heartbeats, 0 before the second.
        slots: location -> bit of the index.
        seqs: location -> last sequence number.
        syncs: location -> its running or last full sync.
        sync_reason: why a full sync must be asked for, or None.
        sync_asked_at: reading of the clock when it was last asked for.
    """

    instance_id: str
    worker_id: int
    ip: str
    port: int
    peer_init_url: str | None
    spec: HashSpec
    announced: bool
    methods: tuple[str, ...] | None
    locations: tuple[str, ...] | None
    model: str | None
    generation: int
    registered_at: float
    seen_at: float
    heartbeat_at: float | None = None
    beat_seconds: float = 0.0
    alive: bool = True
    slots: dict[str, int] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)
    syncs: dict[str, SyncSession] = field(default_factory=dict)
    sync_reason: str | None = None
    sync_asked_at: float | None = None

    @property
    def id(self) -> WorkerId:
        return self.instance_id, self.worker_id

    @property
    def name(self) -> str:
        """As messages show it."""
        return f"{self.instance_id}/{self.worker_id}"

    def location_order(self) -> list[str]:
        """Its locations, fastest first as announced, then its memory, then the others as they showed up."""
        announced = self.locations or ()
        others = [location for location in self.slots if location not in announced]
        return [*announced, *sorted(others, key=lambda location: location != _MEMORY)]


def announced_spec(message: RegisterMsg | HeartbeatMsg, default: HashSpec) -> tuple[HashSpec, bool]:
    """The hash spec of a registration, completed from ``default``, and whether anything of it was announced.

    Raises InvalidRequestError or UnknownNameError for a spec that cannot exist.
    """
    announced = message.chunk_size is not None or message.hash_algorithm is not None or message.none_hash is not None
    spec = HashSpec(
        chunk_size=default.chunk_size if message.chunk_size is None else message.chunk_size,
        algorithm=default.algorithm if message.hash_algorithm is None else message.hash_algorithm,
        none_hash=default.none_hash if message.none_hash is None else message.none_hash,
        save_unfull_chunk=(
            default.save_unfull_chunk if message.save_unfull_chunk is None else message.save_unfull_chunk
        ),
    )
    return spec, announced


class Registry:
    """All workers by instance, in order of registration. It knows names; what they hold is in the index."""

    def __init__(self, clock: Clock, default_spec: HashSpec) -> None:
        self._clock = clock
        self.default_spec = default_spec
        self.instances: dict[str, dict[int, Worker]] = {}
        self._count = 0
        self._generation = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Worker]:
        for workers in self.instances.values():
            yield from workers.values()

    def find(self, instance_id: str, worker_id: int) -> Worker | None:
        """The worker, or None."""
        workers = self.instances.get(instance_id)
        return None if workers is None else workers.get(worker_id)

    def workers(self, instance_id: str) -> list[Worker]:
        """The workers of an instance in order of their ids. Raises UnknownNameError naming the known instances."""
        workers = self.instances.get(instance_id)
        if workers is None:
            hint = None if self.instances else "no instance is registered; did the workers find the monitor port?"
            raise UnknownNameError("instance", instance_id, self.instances, hint=hint)
        return [workers[worker_id] for worker_id in sorted(workers)]

    def add(self, message: RegisterMsg | HeartbeatMsg) -> Worker:
        """Register a worker, replacing what was known of it; the caller has dropped its contents.

        Raises InvalidRequestError for an impossible hash spec, CapacityError when there are too many workers.
        """
        spec, announced = announced_spec(message, self.default_spec)
        known = self.find(message.instance_id, message.worker_id)
        if known is None and self._count >= MAX_WORKERS:
            raise CapacityError(f"the controller already knows {MAX_WORKERS} workers")
        self._generation += 1
        now = self._clock.now()
        worker = Worker(
            instance_id=message.instance_id,
            worker_id=message.worker_id,
            ip=message.ip,
            port=message.port,
            peer_init_url=message.peer_init_url,
            spec=spec,
            announced=announced,
            methods=None if message.methods is None else tuple(message.methods),
            locations=None if message.locations is None else tuple(message.locations),
            model=message.model,
            generation=self._generation,
            registered_at=self._clock.unix(),
            seen_at=now,
            heartbeat_at=None if known is None else known.heartbeat_at,
        )
        self.instances.setdefault(message.instance_id, {})[message.worker_id] = worker
        self._count += known is None
        return worker

    def remove(self, worker: Worker) -> None:
        """Forget a worker, and its instance with the last one."""
        workers = self.instances[worker.instance_id]
        del workers[worker.worker_id]
        self._count -= 1
        if not workers:
            del self.instances[worker.instance_id]
