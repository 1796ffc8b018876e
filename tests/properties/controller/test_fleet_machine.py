"""The controller against prefix tries, with frames under way.

The oracle knows workers by what they hold, as prefixes of token lists, and never by hashes; only the frames that it
sends carry keys. Every frame waits in its worker's queue until it arrives, is lost or comes twice, and the oracle keeps
two pictures of a worker: what it holds, and what it held when the frames that arrived were sent. As long as no change
was lost, every lookup must equal the second picture, whatever is on its way; after a full sync it must again.

Workers carry out what the controller's plans say (clear, pin, unpin, compress, move), by the oracle's own rules.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import cbor2
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lmcache_kit.clock import ManualClock
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.errors import ConflictError, NotFoundError, UnavailableError
from lmcache_kit.kv.hashing import HashSpec
from lmcache_kit.messages import (
    BatchedKVOperationMsg,
    ClearWorkerMsg,
    ClearWorkerRetMsg,
    CompressWorkerMsg,
    CompressWorkerRetMsg,
    DeRegisterMsg,
    ErrorMsg,
    FullSyncBatchMsg,
    FullSyncEndMsg,
    FullSyncStartMsg,
    FullSyncStatusMsg,
    HeartbeatMsg,
    JobInfo,
    KVOpEvent,
    MoveWorkerMsg,
    MoveWorkerRetMsg,
    PinWorkerMsg,
    PinWorkerRetMsg,
    RegisterMsg,
    UnpinWorkerMsg,
    UnpinWorkerRetMsg,
    encode,
)

Prefix = tuple[int, ...]
"""A chunk, as all tokens up to its end."""

WORKERS = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)]
LOCATIONS = ["cpu", "disk"]
PROMPTS = [[a, b, b, a, a, b, c][:length] for a in (0, 1) for b in (0, 1) for c in (2, 3) for length in (3, 4, 6, 7)]
TIMEOUT, SYNC_TIMEOUT = 20.0, 10.0

workers = st.sampled_from(WORKERS)
locations = st.sampled_from(LOCATIONS)
prompts = st.sampled_from(PROMPTS)
specs = st.builds(
    HashSpec,
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from(["builtin", "sha256_cbor"]),
    st.sampled_from([0, 7]),
    st.booleans(),
)


def chunks(spec: HashSpec, tokens: list[int]) -> list[Prefix]:
    ends = range(spec.chunk_size, len(tokens) + 1, spec.chunk_size)
    found = [tuple(tokens[:end]) for end in ends]
    if spec.save_unfull_chunk and len(tokens) % spec.chunk_size:
        found.append(tuple(tokens))
    return found


def key_of(spec: HashSpec, prefix: Prefix) -> int:
    """The key of the chunk that ends here, by the rule of the protocol."""
    parent = spec.none_hash
    for start in range(0, len(prefix), spec.chunk_size):
        part = (parent, prefix[start : start + spec.chunk_size], ())
        if spec.algorithm == "builtin":
            parent = hash(part)
        else:
            digest = hashlib.sha256(cbor2.dumps(part, canonical=True)).digest()
            parent = int.from_bytes(digest[:8], "big")
    return parent


class Trie:
    """What one location holds: nodes by token; a node says whether the chunk that ends there is held."""

    def __init__(self) -> None:
        self.root: dict[Any, Any] = {}

    def change(self, op: str, prefix: Prefix) -> None:
        node = self.root
        for token in prefix:
            node = node.setdefault(token, {})
        node["held"] = op == "admit"

    def holds(self, prefix: Prefix) -> bool:
        node = self.root
        for token in prefix:
            if token not in node:
                return False
            node = node[token]
        return node.get("held", False)

    def all(self) -> list[Prefix]:
        found, waiting = [], [((), self.root)]
        while waiting:
            path, node = waiting.pop()
            if node.get("held"):
                found.append(path)
            waiting += [((*path, token), below) for token, below in node.items() if token != "held"]
        return sorted(found)

    def copy(self) -> Trie:
        twin = Trie()
        for prefix in self.all():
            twin.change("admit", prefix)
        return twin


@dataclass
class Frame:
    """A message under way, and what it does to the picture of its worker when it arrives."""

    message: Any
    location: str
    changes: list[tuple[str, Prefix]] = field(default_factory=list)
    first: int = 0


@dataclass
class Model:
    """One worker process."""

    spec: HashSpec
    holds: dict[str, Trie] = field(default_factory=lambda: {place: Trie() for place in LOCATIONS})
    seen: dict[str, Trie] = field(default_factory=lambda: {place: Trie() for place in LOCATIONS})
    queue: deque[Frame] = field(default_factory=deque)
    seqs: dict[str, int] = field(default_factory=dict)
    pins: set[tuple[str, Prefix, str]] = field(default_factory=set)
    codecs: dict[tuple[str, Prefix], str] = field(default_factory=dict)
    held_back: list[tuple[str, list[tuple[str, Prefix]]]] = field(default_factory=list)
    sync: Sync | None = None
    known: bool = True
    """Whether the controller's picture is ``seen``: no change was lost since it was made."""
    unknown_in: set[str] = field(default_factory=set)
    """Locations in which a change was lost after the running sync's snapshot."""
    must_ask: bool = False
    numbered: dict[str, int] = field(default_factory=dict)
    """The last number that arrived, by location, since the controller began to listen."""
    synced: set[str] = field(default_factory=set)
    heard: float = 0.0
    beats: bool = False
    pace: float = 0.0
    """Seconds between its last two heartbeats, 300 at most; 0 before the second."""


@dataclass
class Sync:
    """A full sync of one location after the other, as a worker does it: its changes wait until it is over."""

    locations: list[str]
    sync_id: str = ""
    batches: list[list[Prefix]] = field(default_factory=list)
    snapshot: list[Prefix] = field(default_factory=list)
    started: set[str] = field(default_factory=set)


class FleetMachine(RuleBasedStateMachine):
    @initialize(shared=specs, own=specs)
    def begin(self, shared: HashSpec, own: HashSpec) -> None:
        self.clock = ManualClock()
        self.core = ControllerCore(
            clock=self.clock, default_spec=HashSpec(5), worker_timeout=TIMEOUT, sync_timeout=SYNC_TIMEOUT
        )
        self.specs = {"a": shared, "b": shared, "c": own}
        self.models: dict[tuple[str, int], Model] = {}
        self.count = 0
        for worker in WORKERS:
            self.register(worker)

    def names(self, worker: tuple[str, int]) -> dict[str, Any]:
        return {"instance_id": worker[0], "worker_id": worker[1]}

    def words(self, worker: tuple[str, int]) -> dict[str, Any]:
        """What registrations and heartbeats say."""
        spec = self.specs[worker[0]]
        return self.names(worker) | {
            "ip": "h",
            "port": 1 + worker[1],
            "peer_init_url": f"{worker[0]}:{worker[1]}",
            "chunk_size": spec.chunk_size,
            "hash_algorithm": spec.algorithm,
            "none_hash": spec.none_hash,
            "save_unfull_chunk": spec.save_unfull_chunk,
            "locations": LOCATIONS,
            "methods": ["naive", "zstd"],
        }

    # --- joining and leaving ------------------------------------------------------------------------------------------

    @rule(worker=workers)
    def register(self, worker: tuple[str, int]) -> None:
        """A new process, with nothing in it; what the old one sent is gone."""
        again = worker in self.models
        self.core.on_request(RegisterMsg(**self.words(worker)))
        beats = again and self.models[worker].beats
        self.models[worker] = Model(self.specs[worker[0]], must_ask=again, heard=self.clock.now(), beats=beats)

    @rule(worker=workers)
    def deregister(self, worker: tuple[str, int]) -> None:
        self.core.on_pushed(DeRegisterMsg(**self.names(worker), ip="h", port=1 + worker[1]))
        self.models.pop(worker, None)

    @rule(worker=workers)
    def deregister_of_an_earlier_life(self, worker: tuple[str, int]) -> None:
        """Comes from another address than the one that is registered, and changes nothing."""
        before = worker in self.models
        try:
            self.core.on_pushed(DeRegisterMsg(**self.names(worker), ip="h", port=99))
            assert not before
        except ConflictError:
            assert before

    # --- what workers do of themselves --------------------------------------------------------------------------------

    @rule(worker=workers, location=locations, prompt=prompts, skip=st.sampled_from([-1, -1, -1, 0, 1, 2]))
    def store(self, worker: tuple[str, int], location: str, prompt: list[int], skip: int) -> None:
        if worker in self.models:
            wanted = [p for i, p in enumerate(chunks(self.specs[worker[0]], prompt)) if i != skip]
            self.do(worker, location, [("admit", p) for p in wanted])

    @rule(instance=st.sampled_from("abc"), location=locations, prompt=prompts)
    def serve(self, instance: str, location: str, prompt: list[int]) -> None:
        """All ranks store a prompt, and all their frames arrive."""
        for worker in WORKERS:
            if worker[0] == instance and worker in self.models:
                self.store(worker, location, prompt, -1)
                self.arrive(worker, 99)

    @rule(worker=workers, location=locations, which=st.integers(0, 20), most=st.integers(1, 3))
    def evict(self, worker: tuple[str, int], location: str, which: int, most: int) -> None:
        model = self.models.get(worker)
        if model is None:
            return
        pinned = {prefix for place, prefix, _ in model.pins if place == location}
        free = [prefix for prefix in model.holds[location].all() if prefix not in pinned]
        if free:
            which %= len(free)
            self.do(worker, location, [("evict", prefix) for prefix in free[which : which + most]])

    def do(self, worker: tuple[str, int], location: str, changes: list[tuple[str, Prefix]]) -> None:
        model = self.models[worker]
        changes = [(op, p) for op, p in changes if (op == "admit") != model.holds[location].holds(p)]
        for op, prefix in changes:
            model.holds[location].change(op, prefix)
            if op == "evict":
                model.codecs.pop((location, prefix), None)
        if changes and model.sync is not None:
            model.held_back.append((location, changes))
        elif changes:
            self.send(model, worker, location, changes)

    def send(self, model: Model, worker: tuple[str, int], location: str, changes: list[tuple[str, Prefix]]) -> None:
        first = model.seqs.get(location, 0)
        events = [
            KVOpEvent(op_type=op, key=key_of(model.spec, prefix), seq_num=first + i)  # type: ignore[arg-type]
            for i, (op, prefix) in enumerate(changes)
        ]
        model.seqs[location] = first + len(events)
        message = BatchedKVOperationMsg(**self.names(worker), location=location, operations=events)
        model.queue.append(Frame(message, location, changes, first))

    # --- the wire -----------------------------------------------------------------------------------------------------

    @rule(worker=workers, most=st.sampled_from([1, 2, 99]))
    def arrive(self, worker: tuple[str, int], most: int) -> None:
        model = self.models.get(worker)
        while model is not None and model.queue and most > 0:
            self.deliver(model, model.queue.popleft())
            most -= 1

    @rule(worker=workers)
    def comes_twice(self, worker: tuple[str, int]) -> None:
        """What came already changes nothing, and does no harm but the question for a sync."""
        model = self.models.get(worker)
        if model is not None and model.queue and not (model.queue[0].changes and model.queue[0].first == 0):
            frame = model.queue.popleft()
            self.deliver(model, frame)
            self.core.receive_pushed(encode(frame.message))

    @rule(worker=workers)
    def is_lost(self, worker: tuple[str, int]) -> None:
        model = self.models.get(worker)
        if model is not None and model.queue:
            frame = model.queue.popleft()
            if frame.changes:
                model.known = False
                if model.sync is not None:
                    model.unknown_in.add(frame.location)

    def deliver(self, model: Model, frame: Frame) -> None:
        self.core.receive_pushed(encode(frame.message))
        place = frame.location
        for op, prefix in frame.changes:
            model.seen[place].change(op, prefix)
        if frame.changes:
            last = model.numbered.get(place)
            if last is None:
                model.must_ask |= frame.first != 0 and place not in model.synced
            else:
                model.must_ask |= frame.first != last + 1
            model.numbered[place] = frame.first + len(frame.changes) - 1

    # --- heartbeats and syncs -----------------------------------------------------------------------------------------

    @rule(worker=workers)
    def heartbeat(self, worker: tuple[str, int]) -> None:
        new = worker not in self.models
        if new:
            self.models[worker] = Model(self.specs[worker[0]], must_ask=True)
        model = self.models[worker]
        answer = self.core.on_request(HeartbeatMsg(**self.words(worker)))
        if model.beats:
            model.pace = min(self.clock.now() - model.heard, 300.0)
        model.beats, model.heard = True, self.clock.now()
        if answer.commands and model.sync is None:
            model.sync = Sync(list(LOCATIONS))
            model.unknown_in.clear()
            self.start_sync(worker)
        else:
            waits = model.sync is not None or answer.commands
            assert waits or not model.must_ask or self.asked_just_now(worker)

    def asked_just_now(self, worker: tuple[str, int]) -> bool:
        """A worker is asked once, and again only when it did not answer for a while."""
        known = self.core.registry.find(*worker)
        return known.sync_asked_at is not None and self.clock.now() - known.sync_asked_at < SYNC_TIMEOUT

    def start_sync(self, worker: tuple[str, int]) -> None:
        model = self.models[worker]
        sync = model.sync
        location = sync.locations[0]
        self.count += 1
        sync.sync_id = f"sync{self.count}"
        sync.snapshot = model.holds[location].all() if not model.held_back else self.before_held_back(model, location)
        sync.batches = [sync.snapshot[i : i + 2] for i in range(0, len(sync.snapshot), 2)] or [[]]
        start = FullSyncStartMsg(
            **self.names(worker),
            location=location,
            sync_id=sync.sync_id,
            total_keys=len(sync.snapshot),
            batch_count=len(sync.batches),
        )
        assert self.core.on_request(start).accepted
        model.must_ask = False
        model.synced.add(location)
        sync.started.add(location)
        self.send_batches(worker, range(len(sync.batches)))

    def before_held_back(self, model: Model, location: str) -> list[Prefix]:
        """A worker makes one snapshot for all locations; what changed since is told afterwards."""
        then = model.holds[location].copy()
        for place, changes in reversed(model.held_back):
            if place == location:
                for op, prefix in reversed(changes):
                    then.change("evict" if op == "admit" else "admit", prefix)
        return then.all()

    def send_batches(self, worker: tuple[str, int], numbers: Any) -> None:
        model = self.models[worker]
        sync = model.sync
        names = self.names(worker) | {"location": sync.locations[0], "sync_id": sync.sync_id}
        for number in numbers:
            keys = [key_of(model.spec, prefix) for prefix in sync.batches[number]]
            model.queue.append(Frame(FullSyncBatchMsg(**names, batch_id=number, keys=keys), sync.locations[0]))
        model.queue.append(Frame(FullSyncEndMsg(**names, actual_total_keys=len(sync.snapshot)), sync.locations[0]))

    @rule(worker=workers, tries=st.integers(1, 6))
    def sync_goes_on(self, worker: tuple[str, int], tries: int) -> None:
        for _ in range(tries):
            self.sync_step(worker)

    def sync_step(self, worker: tuple[str, int]) -> None:
        """Ask how far it is; send again what is missing, or go on with the next location."""
        model = self.models.get(worker)
        if model is None or model.sync is None:
            return
        sync = model.sync
        location = sync.locations[0]
        earlier = [frame for frame in model.queue if frame.location == location]
        answer = self.core.on_request(FullSyncStatusMsg(**self.names(worker), sync_id=sync.sync_id))
        if answer.is_complete:
            assert not answer.missing_batches
            assert answer.can_exit_freeze
            # The batches are the snapshot; changes that came after the sync began were older than it.
            model.seen[location] = Trie()
            for prefix in sync.snapshot:
                model.seen[location].change("admit", prefix)
            del sync.locations[0]
            if sync.locations:
                self.start_sync(worker)
            else:
                self.end_sync(worker)
        elif not earlier:
            self.send_batches(worker, answer.missing_batches)
            if not answer.missing_batches:
                # The controller gave it up, or knows nothing of it: it begins anew with this location.
                self.start_sync(worker)

    def end_sync(self, worker: tuple[str, int]) -> None:
        model = self.models[worker]
        model.sync = None
        model.known = not model.unknown_in
        for location, changes in model.held_back:
            self.send(model, worker, location, changes)
        model.held_back.clear()

    # --- time ---------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 6.0, 15.0, 1000.0]))
    def time_jumps(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.core.tick()
        for worker, model in self.models.items():
            known = self.core.registry.find(*worker)
            assert known is not None
            silent = self.clock.now() - model.heard
            assert known.alive == (not model.beats or silent <= max(TIMEOUT, 2.5 * model.pace))
            if not known.alive:
                self.forgotten(model)
            elif model.sync is not None and model.sync.locations[0] not in known.syncs:
                model.must_ask = True

    def forgotten(self, model: Model) -> None:
        """The controller dropped what it knew; frames that still come are applied to nothing."""
        if model.known or model.numbered or model.synced:
            model.known = False
            model.numbered.clear()
            model.synced.clear()
            if model.sync is not None:
                model.unknown_in |= set(LOCATIONS)
        model.must_ask = True

    @rule()
    def sweep(self) -> None:
        self.core.contents.index.sweep(2)

    # --- what clients ask for -----------------------------------------------------------------------------------------

    @rule(
        instance=st.sampled_from("abc"),
        location=locations,
        prompt=prompts,
        op=st.sampled_from(["clear", "pin", "unpin", "compress", "move", "copy"]),
        goal=st.sampled_from([("a", "cpu"), ("b", "cpu"), ("b", "disk"), ("c", "disk")]),
        lost=st.sampled_from(["", "", "", "request", "answer"]),
    )
    def operate(self, instance: str, location: str, prompt: list[int], op: str, goal: Any, lost: str) -> None:
        plan = self.planned(instance, location, prompt, op, goal)
        if plan is None:
            return
        outcomes: list[Any] = []
        for call in plan.calls:
            worker = call.worker.id
            if lost == "request":
                outcomes.append(UnavailableError("no answer"))
                continue
            answer = self.carry_out(worker, call.message)
            outcomes.append(UnavailableError("no answer") if lost == "answer" else answer)
        failed = any(isinstance(outcome, UnavailableError | ErrorMsg) for outcome in outcomes)
        done = [outcome.num_tokens for outcome in outcomes if not isinstance(outcome, UnavailableError | ErrorMsg)]
        try:
            assert self.core.settle(plan, outcomes) == min(done)
            assert not failed
        except UnavailableError:
            assert lost
        except NotFoundError:
            assert not lost
            assert min(done) == 0
            assert op != "unpin"

    def planned(self, instance: str, location: str, prompt: list[int], op: str, goal: Any) -> Any:
        members = [worker for worker in WORKERS if worker[0] == instance]
        try:
            match op:
                case "clear":
                    plan = self.core.plan.clear(instance, location)
                case "pin":
                    plan = self.core.plan.pin(instance, location, prompt, "me", None)
                case "unpin":
                    plan = self.core.plan.unpin(instance, location, prompt, "me")
                case "compress":
                    plan = self.core.plan.compress(instance, "zstd", location, prompt)
                case _:
                    if (instance, location) == goal:
                        return None
                    plan = self.core.plan.move((instance, location), goal, prompt, copy=op == "copy")
        except NotFoundError:
            known = {worker[0] for worker in self.models}
            assert instance not in known or (op in ("move", "copy") and goal[0] not in known)
            return None
        except UnavailableError:
            assert any(not known.alive for known in self.core.registry)
            return None
        except ConflictError:
            assert op in ("move", "copy")
            return None
        assert [call.worker.id for call in plan.calls] == [worker for worker in members if worker in self.models]
        return plan

    def carry_out(self, worker: tuple[str, int], message: Any) -> Any:
        """What a worker does with a call, by the oracle's rules."""
        model = self.models[worker]
        tokens = getattr(message, "tokens", None)
        place = message.old_position if isinstance(message, MoveWorkerMsg) else message.location
        there = model.holds[place].all()
        if tokens is not None:
            named = set(chunks(model.spec, tokens))
            there = [prefix for prefix in there if prefix in named]
        count = sum(
            len(prefix) - (len(prefix) - 1) // model.spec.chunk_size * model.spec.chunk_size for prefix in there
        )
        pinned = {prefix for where, prefix, _ in model.pins if where == place}
        match message:
            case ClearWorkerMsg():
                self.do(worker, place, [("evict", prefix) for prefix in there if prefix not in pinned])
                return ClearWorkerRetMsg(num_tokens=count)
            case PinWorkerMsg(owner=owner):
                model.pins |= {(place, prefix, owner) for prefix in there}
                return PinWorkerRetMsg(num_tokens=count)
            case UnpinWorkerMsg(owner=owner):
                model.pins -= {(place, prefix, owner) for prefix in there}
                return UnpinWorkerRetMsg(num_tokens=count)
            case CompressWorkerMsg(method=method):
                model.codecs |= {(place, prefix): method for prefix in there}
                return CompressWorkerRetMsg(num_tokens=count, job=JobInfo(status="done", num_tokens=count))
            case MoveWorkerMsg(new_position=(url, target)):
                instance, number = url.split(":")
                other = (instance, int(number))
                if other in self.models:
                    self.do(other, target, [("admit", prefix) for prefix in there])
                if not message.copy:
                    self.do(worker, place, [("evict", prefix) for prefix in there if prefix not in pinned])
                return MoveWorkerRetMsg(num_tokens=count)
        raise AssertionError(message)

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def lookups_equal_the_tries(self) -> None:
        for prompt in PROMPTS if hasattr(self, "core") else ():
            found = self.core.lookup(prompt)
            for instance in "abc":
                members = [model for worker, model in self.models.items() if worker[0] == instance]
                if not members:
                    assert instance not in found.prefix
                    continue
                if not all(model.known for model in members) or any(model.sync for model in members):
                    continue
                each = {place: min(self.covered(m, prompt, [place]) for m in members) for place in LOCATIONS}
                assert found.holders.get(instance, {}) == {place: n for place, n in each.items() if n}
                together = min(self.covered(model, prompt, LOCATIONS) for model in members)
                assert found.prefix.get(instance, 0) == together
                if any(each.values()):
                    best = max(LOCATIONS, key=lambda place: each[place])  # the first of equals, which is the faster
                    assert found.layout[instance] == (best, each[best])
                else:
                    assert instance not in found.layout

    @staticmethod
    def covered(model: Model, prompt: list[int], places: list[str]) -> int:
        end = 0
        for prefix in chunks(model.spec, prompt):
            if not any(model.seen[place].holds(prefix) for place in places):
                break
            end = len(prefix)
        return end

    @invariant()
    def pinned_chunks_stay(self) -> None:
        for model in self.models.values() if hasattr(self, "core") else ():
            for place, prefix, _ in model.pins:
                assert model.holds[place].holds(prefix)

    def teardown(self) -> None:
        """Once everything drained, the index is the union of what the workers hold."""
        if not hasattr(self, "core"):
            return
        for worker in list(self.models):
            # Whatever was lost, an end of the noise and two more beats make it good.
            for _ in range(3):
                self.clock.advance(SYNC_TIMEOUT + 1)
                self.heartbeat(worker)
                for _ in range(40):
                    self.arrive(worker, 99)
                    self.sync_step(worker)
            model = self.models[worker]
            assert model.sync is None, "a sync that never ends"
        self.lookups_equal_the_tries()
        for worker, model in self.models.items():
            if model.known:
                slots = self.core.registry.find(*worker).slots
                for place in LOCATIONS:
                    keys = set(self.core.contents.index.keys(slots[place]))
                    assert keys == {key_of(model.spec, prefix) for prefix in model.holds[place].all()}
        for worker in list(self.models):
            self.deregister(worker)
        while self.core.tick():
            pass
        assert self.core.contents.index.masks == {}


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
