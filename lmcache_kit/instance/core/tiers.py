"""One tier: its configuration, its objects and the account of its bytes."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

import msgspec

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.eviction import EvictionPolicy
from lmcache_kit.contracts.placement import TierView
from lmcache_kit.contracts.storage import StorageBackend
from lmcache_kit.errors import CapacityError
from lmcache_kit.instance.core.pins import PinTable
from lmcache_kit.kv.keys import ChunkKey

__all__ = ["Entry", "EntryState", "Tier", "TierState"]


@dataclass(slots=True, kw_only=True)
class Tier:
    """A configured tier.

    Args:
        location: the name under which the controller lists it.
        backend: where the bytes go.
        capacity_bytes: most bytes that this instance keeps there; None for no limit.
        policy: its eviction policy.
        inline: the backend's methods may be called on the event loop.
        persistent: contents are found again when the store opens.
        shared: other instances read, write and delete in the same store.
        writable: False for a tier that is only read.
        readable: False for a tier that completions do not read; it still serves peers, moves and jobs.
        method: compression method of what a save writes here; None for the store's. Copies of other tiers keep theirs.
    """

    location: str
    backend: StorageBackend
    capacity_bytes: int | None
    policy: EvictionPolicy
    inline: bool = False
    persistent: bool = False
    shared: bool = False
    writable: bool = True
    readable: bool = True
    method: str | None = None


class EntryState(enum.Enum):
    """``WRITING``: space is claimed, bytes are not there yet. ``READY``: readable. ``LEAVING``: chosen to go.

    ``DOUBTFUL``: a write or a deletion failed and the backend would not say what is there. Such an object keeps its
    room and is not served; it is deleted when room is needed, when it is cleared, or before it is written again.
    """

    ABSENT = "absent"
    WRITING = "writing"
    READY = "ready"
    LEAVING = "leaving"
    DOUBTFUL = "doubtful"


class Entry(msgspec.Struct, eq=False, gc=False):
    """One object of one tier. A struct, since there are millions and each decision makes some; it refers to nothing
    that could refer to it, so no collector needs to look at it.

    Args:
        nbytes: stored size.
        num_tokens: tokens of the chunk.
        codec: compression method that it is in; empty when not known (written by another instance).
        listed: announced as admitted and not yet as evicted.
        readers: reads in progress; the bytes stay until there is none.
        rewriting: a new encoding is being written in its place.
        foreign: another instance wrote it, so its bytes are not in our account.
    """

    key: ChunkKey
    name: str
    nbytes: int
    num_tokens: int
    codec: str
    state: EntryState = EntryState.WRITING
    listed: bool = False
    readers: int = 0
    rewriting: bool = False
    foreign: bool = False


@dataclass(slots=True)
class TierState:
    """Objects and bytes of one tier, without any I/O.

    ``held`` are bytes that are in the backend or being written to it, ``claimed`` those promised to writes that wait
    for room, ``leaving`` the part of ``held`` that nothing but its deletion keeps. Decisions look at :attr:`planned`,
    writes start by :attr:`held`; so decisions do not depend on how fast the I/O is, and held never passes capacity.
    While ``full`` is set, nothing new is written here, as if the device had no room; reads and removals go on.
    """

    index: int
    location: str
    capacity: int | None
    policy: EvictionPolicy
    clock: Clock
    writable: bool = True
    full: bool = False
    held: int = 0
    claimed: int = 0
    leaving: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    pins: PinTable = field(init=False)
    _seen: TierView | None = None

    def __post_init__(self) -> None:
        self.pins = PinTable(self.clock)

    @property
    def planned(self) -> int:
        """Bytes once all that was decided is carried out."""
        return self.held + self.claimed - self.leaving

    def view(self) -> TierView:
        used, writable, seen = self.held + self.claimed - self.leaving, self.writable and not self.full, self._seen
        # Asked about every object, and most decisions change one tier or none.
        if seen is None or seen.used_bytes != used or seen.writable is not writable:
            seen = self._seen = TierView(
                location=self.location, capacity_bytes=self.capacity, used_bytes=used, writable=writable
            )
        return seen

    def state(self, name: str) -> EntryState:
        entry = self.entries.get(name)
        return EntryState.ABSENT if entry is None else entry.state

    def ready(self, name: str) -> Entry | None:
        entry = self.entries.get(name)
        return entry if entry is not None and entry.state is EntryState.READY else None

    def listed(self) -> Iterator[Entry]:
        """Entries that the outside knows as contents."""
        return (entry for entry in self.entries.values() if entry.listed)

    def fits(self, nbytes: int) -> bool:
        """Whether an object of this size could be stored here, given room."""
        return self.writable and not self.full and (self.capacity is None or nbytes <= self.capacity)

    def refusal(self, nbytes: int) -> str:
        """Why an object that does not fit does not."""
        if not self.writable:
            return f"{nbytes} bytes do not fit into {self.location}, which is read-only"
        if self.full:
            return f"{nbytes} bytes do not fit into {self.location}, which takes nothing: it is full"
        return f"{nbytes} bytes do not fit into {self.location} of {self.capacity} bytes"

    def evictable(self, entry: Entry) -> bool:
        return (
            entry.state in (EntryState.READY, EntryState.DOUBTFUL)
            and entry.readers == 0
            and not entry.foreign
            and not self.pins.pinned(entry.name)
        )

    def choose_victims(self, protect: Set[str]) -> list[Entry]:
        """Entries whose eviction brings ``planned`` within capacity, in the policy's order. Changes nothing.

        Raises CapacityError when all that may be evicted is not enough.
        """
        if self.capacity is None:
            return []
        excess = self.held + self.claimed - self.leaving - self.capacity
        if excess <= 0:
            return []
        victims: list[Entry] = []
        for name in self.policy.victims():
            entry = self.entries.get(name)
            if entry is None or name in protect or not self.evictable(entry):
                continue
            victims.append(entry)
            excess -= entry.nbytes
            if excess <= 0:
                return victims
        raise CapacityError(
            f"{self.location} has no room: {excess} of its {self.capacity} bytes more are needed "
            "and everything else is pinned or in use",
            hint="unpin or clear something, or give the tier more capacity",
        )
