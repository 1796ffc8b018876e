"""The controller's view against a naive oracle, under any order of joining, reporting, losing, syncing and dying.

The oracle is what the workers truly hold: sets of keys. A worker is *clean* while every frame of it arrived since it
registered or last completed a sync; for instances whose workers are all clean, every lookup must equal the oracle's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lmcache_kit.clock import ManualClock
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.kv.hashing import HashSpec
from lmcache_kit.messages import (
    BatchedKVOperationMsg,
    DeRegisterMsg,
    FullSyncBatchMsg,
    FullSyncEndMsg,
    FullSyncStartMsg,
    FullSyncStatusMsg,
    HeartbeatMsg,
    KVOpEvent,
    RegisterMsg,
    decode_pushed,
    encode,
)

CHUNK = 2
PROMPTS = [[a, a, b, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]


def chain(tokens: list[int]) -> list[tuple[int, int]]:
    """(tokens covered, key) of each chunk, written out anew."""
    parent, found = 0, []
    for start in range(0, len(tokens), CHUNK):
        part = tuple(tokens[start : start + CHUNK])
        parent = hash((parent, part, ()))
        found.append((start + len(part), parent))
    return found


KEYS = sorted({key for prompt in PROMPTS for _, key in chain(prompt)})
WORKERS = [("a", 0), ("a", 1), ("b", 0)]
LOCATIONS = ["cpu", "disk"]

workers = st.sampled_from(WORKERS)
locations = st.sampled_from(LOCATIONS)


def store(prompt: list[int], skip: int) -> list[tuple[str, int]]:
    """What storing a prompt reports, but for one chunk perhaps."""
    return [("admit", key) for i, (_, key) in enumerate(chain(prompt)) if i != skip]


single = st.tuples(st.sampled_from(["admit", "evict"]), st.sampled_from(KEYS))
operations = st.one_of(
    st.builds(store, st.sampled_from(PROMPTS), st.sampled_from([-1, -1, -1, 0, 1, 2])),
    st.lists(single, min_size=1, max_size=4),
    st.builds(lambda prompt, i: [("evict", chain(prompt)[i][1])], st.sampled_from(PROMPTS), st.integers(0, 2)),
)


@dataclass
class Model:
    """One worker process."""

    holds: dict[str, set[int]] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)
    clean: bool = True
    must_sync: bool = False
    beats: bool = False
    lost: set[str] = field(default_factory=set)
    last: BatchedKVOperationMsg | None = None
    counted: set[str] = field(default_factory=set)
    """Locations whose numbering the controller knows."""
    blind: set[str] = field(default_factory=set)
    """Locations that were synced before any number was known: what is lost right after cannot be noticed."""

    def arrived(self, location):
        self.counted.add(location)
        if location in self.blind:
            self.blind.discard(location)
            self.lost.discard(location)


class ControllerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.clock = ManualClock()
        self.core = ControllerCore(clock=self.clock, default_spec=HashSpec(CHUNK), worker_timeout=20, sync_timeout=10)
        self.models: dict[tuple[str, int], Model] = {}
        self.syncs = 0
        for worker in WORKERS:
            self.register(worker)

    # --- workers ------------------------------------------------------------------------------------------------------

    @rule(worker=workers)
    def restart(self, worker):
        """A new process, with nothing in it."""
        self.register(worker)

    def register(self, worker):
        known = worker in self.models
        beats = known and self.models[worker].beats
        self.core.on_request(RegisterMsg(instance_id=worker[0], worker_id=worker[1], ip="h", port=1))
        self.models[worker] = Model(must_sync=known, beats=beats)

    @rule(worker=workers)
    def leave(self, worker):
        self.deregister(worker)

    def deregister(self, worker):
        self.core.on_pushed(DeRegisterMsg(instance_id=worker[0], worker_id=worker[1], ip="h", port=1))
        self.models.pop(worker, None)

    @rule(worker=workers, location=locations, changes=operations)
    def report(self, worker, location, changes):
        if worker in self.models:
            message = self.change(worker, location, changes)
            self.core.on_pushed(decode_pushed(encode(message)))
            model = self.models[worker]
            model.last = message
            model.arrived(location)
            if location in model.lost:
                model.must_sync = True  # the gap shows now

    @rule(prompt=st.sampled_from(PROMPTS), instance=st.sampled_from(["a", "b"]), location=locations)
    def serve(self, prompt, instance, location):
        """All ranks of an instance store a prompt."""
        for worker in WORKERS:
            if worker[0] == instance:
                self.report(worker, location, store(prompt, -1))

    @rule(worker=workers, location=locations, changes=operations)
    def report_is_lost(self, worker, location, changes):
        if worker in self.models:
            self.change(worker, location, changes)
            self.models[worker].clean = False
            self.models[worker].lost.add(location)

    @rule(worker=workers)
    def repeat_the_last_frame(self, worker):
        model = self.models.get(worker)
        if model is None or model.last is None or len(model.last.operations) < 2:
            return  # a single operation with number 0 cannot be told from one that does not count; it changes nothing
        self.core.on_pushed(model.last)

    @rule(seconds=st.sampled_from([1, 6, 15]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)
        self.core.tick()
        for worker, model in self.models.items():
            known = self.core.registry.find(*worker)
            assert known is not None
            if not known.alive:
                model.clean, model.must_sync = False, True
                model.counted.clear()
                model.blind.clear()
                model.last = None

    @rule()
    def sweep(self):
        self.core.contents.index.sweep(3)

    # --- syncs --------------------------------------------------------------------------------------------------------

    @rule(worker=workers, data=st.data())
    def heartbeat(self, worker, data):
        """Beat, and when the controller asks for it, sync every location with other things going on meanwhile."""
        unknown = worker not in self.models
        model = self.models.setdefault(worker, Model(must_sync=True))
        answer = self.core.on_request(HeartbeatMsg(instance_id=worker[0], worker_id=worker[1], ip="h", port=1))
        model.beats = True
        asked = bool(answer.commands)
        assert asked or not (unknown or model.must_sync), "the controller must know that it does not know"
        if asked:
            for location in LOCATIONS:
                self.sync(worker, location, data)
            model.clean, model.must_sync = True, False
            model.lost.clear()

    def sync(self, worker, location, data):
        model = self.models[worker]
        self.syncs += 1
        name = {"instance_id": worker[0], "worker_id": worker[1], "location": location, "sync_id": f"s{self.syncs}"}
        if data.draw(st.booleans(), "an abandoned attempt before"):
            old = {**name, "sync_id": f"old{self.syncs}"}
            self.core.on_request(FullSyncStartMsg(**old, total_keys=9, batch_count=2))
            self.core.on_pushed(FullSyncBatchMsg(**old, batch_id=0, keys=data.draw(st.lists(st.sampled_from(KEYS)))))
        if location not in model.counted:
            model.blind.add(location)
        snapshot = sorted(model.holds.get(location, ()))
        batches = [snapshot[i : i + 3] for i in range(0, len(snapshot), 3)] or [[]]
        start = FullSyncStartMsg(**name, total_keys=len(snapshot), batch_count=len(batches))
        assert self.core.on_request(start).accepted
        for number in data.draw(st.permutations(range(len(batches))), "order"):
            if data.draw(st.booleans(), "a change meanwhile"):
                self.core.on_pushed(self.change(worker, location, data.draw(operations)))
                model.arrived(location)
            if not data.draw(st.booleans(), "the batch is lost"):
                self.core.receive_pushed(encode(FullSyncBatchMsg(**name, batch_id=number, keys=batches[number])))
        self.core.receive_pushed(encode(FullSyncEndMsg(**name, actual_total_keys=len(snapshot))))
        ask = FullSyncStatusMsg(instance_id=worker[0], worker_id=worker[1], sync_id=name["sync_id"])
        missing = self.core.on_request(ask).missing_batches
        for number in missing:
            self.core.receive_pushed(encode(FullSyncBatchMsg(**name, batch_id=number, keys=batches[number])))
        status = self.core.on_request(ask)
        assert status.is_complete
        assert status.can_exit_freeze
        model.last = None

    def change(self, worker, location, changes):
        model = self.models[worker]
        held = model.holds.setdefault(location, set())
        events = []
        for op, key in changes:
            (held.add if op == "admit" else held.discard)(key)
            number = model.seqs.get(location, 0)
            model.seqs[location] = number + 1
            events.append(KVOpEvent(op_type=op, key=key, seq_num=number))
        return BatchedKVOperationMsg(instance_id=worker[0], worker_id=worker[1], location=location, operations=events)

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def lookups_equal_the_oracle(self):
        for instance in {worker[0] for worker in self.models}:
            members = [model for worker, model in self.models.items() if worker[0] == instance]
            if not all(model.clean for model in members):
                continue
            for prompt in PROMPTS:
                found = self.core.lookup(prompt)
                holders = {
                    location: n
                    for location in LOCATIONS
                    if (n := min(self.prefix(prompt, model.holds.get(location, set())) for model in members))
                }
                together = min(self.prefix(prompt, set().union(*model.holds.values())) for model in members)
                assert found.holders.get(instance, {}) == holders
                assert found.prefix.get(instance, 0) == together
                if holders:
                    location, held = found.layout[instance]
                    assert held == max(holders.values()) == holders[location]
                else:
                    assert instance not in found.layout

    @invariant()
    def nobody_else_is_named(self):
        known = {worker[0] for worker in self.models}
        assert set(self.core.registry.instances) == known
        for prompt in PROMPTS[:2]:
            assert set(self.core.lookup(prompt).prefix) <= known

    @staticmethod
    def prefix(prompt, held):
        covered = 0
        for stop, key in chain(prompt):
            if key not in held:
                break
            covered = stop
        return covered

    def teardown(self):
        for worker in list(self.models):
            self.deregister(worker)
        while self.core.tick():
            pass
        assert self.core.contents.index.masks == {}


ControllerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestControllerMachine = ControllerMachine.TestCase
