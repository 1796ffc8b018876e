"""A core on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from lmcache_kit.clock import ManualClock
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.kv.hashing import ChunkHasher, HashSpec
from lmcache_kit.messages import (
    BatchedKVOperationMsg,
    FullSyncBatchMsg,
    FullSyncStartMsg,
    FullSyncStatusMsg,
    HeartbeatMsg,
    KVOpEvent,
    RegisterMsg,
)

SPEC = HashSpec(chunk_size=4)


@dataclass
class Rig:
    """The core, its clock, and workers that number their operations."""

    clock: ManualClock
    core: ControllerCore
    spec: HashSpec = SPEC
    seqs: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def register(self, instance: str = "a", worker: int = 0, **more: Any) -> Any:
        fields = {"ip": "10.0.0.1", "port": 8001 + worker, **more}
        return self.core.on_request(RegisterMsg(instance_id=instance, worker_id=worker, **fields))

    def heartbeat(self, instance: str = "a", worker: int = 0, **more: Any) -> list[str | None]:
        fields = {"ip": "10.0.0.1", "port": 8001 + worker, **more}
        answer: Any = self.core.on_request(HeartbeatMsg(instance_id=instance, worker_id=worker, **fields))
        return [command.reason for command in answer.commands]

    def operate(
        self, op: str, keys: list[int], instance: str = "a", worker: int = 0, location: str = "cpu"
    ) -> BatchedKVOperationMsg:
        """The message that the worker sends for ``keys``; it is on the caller to deliver it."""
        slot = (instance, worker, location)
        operations = []
        for key in keys:
            number = self.seqs.get(slot, 0)
            self.seqs[slot] = number + 1
            operations.append(KVOpEvent(op_type=op, key=key, seq_num=number))  # type: ignore[arg-type]
        return BatchedKVOperationMsg(instance_id=instance, worker_id=worker, location=location, operations=operations)

    def admit(self, keys: list[int], instance: str = "a", worker: int = 0, location: str = "cpu") -> None:
        self.core.on_pushed(self.operate("admit", keys, instance, worker, location))

    def evict(self, keys: list[int], instance: str = "a", worker: int = 0, location: str = "cpu") -> None:
        self.core.on_pushed(self.operate("evict", keys, instance, worker, location))

    def hashes(self, tokens: list[int], spec: HashSpec | None = None) -> list[int]:
        return ChunkHasher(spec or self.spec).hashes(tokens)

    def start_sync(
        self, sync_id: str, batches: int, location: str = "cpu", instance: str = "a", worker: int = 0
    ) -> Any:
        return self.core.on_request(
            FullSyncStartMsg(
                instance_id=instance,
                worker_id=worker,
                location=location,
                sync_id=sync_id,
                total_keys=0,
                batch_count=batches,
            )
        )

    def batch(self, sync_id: str, number: int, keys: list[int], location: str = "cpu", instance: str = "a") -> None:
        self.core.on_pushed(
            FullSyncBatchMsg(
                instance_id=instance, worker_id=0, location=location, sync_id=sync_id, batch_id=number, keys=keys
            )
        )

    def status(self, sync_id: str, instance: str = "a") -> Any:
        return self.core.on_request(FullSyncStatusMsg(instance_id=instance, worker_id=0, sync_id=sync_id))


@pytest.fixture
def make_rig() -> Callable[..., Rig]:
    def make(**more: Any) -> Rig:
        clock = ManualClock(epoch=1_000_000)
        return Rig(clock, ControllerCore(clock=clock, default_spec=SPEC, **more))

    return make


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()
