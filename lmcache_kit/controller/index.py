"""The chunk index: chunk key -> bitmask of the slots that hold it.

A slot is one bit: the contents of one location of one worker. Dropping a slot's contents, or replacing them after a
full sync, is a change of bits in the owner's table and takes no time; the keys of the old bit are swept out of the
index a few thousand at a time, so that a worker with millions of chunks can leave without holding up a lookup. Until a
retired bit is swept it still stands in the masks, so every reader intersects a mask with the bits it trusts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Set

from lmcache_kit.messages import KVOpEvent

__all__ = ["ChunkIndex"]


class ChunkIndex:
    """Masks of chunk keys, and the keys of every slot."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        """Chunk key -> OR of slot bits; for reading only."""
        self._keys: dict[int, set[int]] = {}
        self._retired: deque[int] = deque()
        self._free: list[int] = []
        self._width = 0

    def open_slot(self) -> int:
        """A new empty slot's bit (a power of two)."""
        if self._free:
            bit = self._free.pop()
        else:
            bit = 1 << self._width
            self._width += 1
        self._keys[bit] = set()
        return bit

    def retire(self, bit: int) -> None:
        """Give up a slot; its bit must not be trusted any more. :meth:`sweep` makes it free for reuse."""
        self._retired.append(bit)

    def admit(self, bit: int, keys: Iterable[int]) -> None:
        """The slot holds ``keys`` from now on."""
        held = self._keys[bit]
        masks = self.masks
        for key in keys:
            if key not in held:
                held.add(key)
                masks[key] = masks.get(key, 0) | bit

    def evict(self, bit: int, key: int) -> None:
        """The slot does not hold ``key`` any more; nothing happens when it did not."""
        held = self._keys[bit]
        if key in held:
            held.discard(key)
            self._clear(bit, key)

    def change(self, bit: int, operations: Iterable[KVOpEvent]) -> None:
        """Admit and evict in order. The loop is written out: hundreds of thousands pass through it every second."""
        held, masks = self._keys[bit], self.masks
        for operation in operations:
            key = operation.key
            if operation.op_type == "admit":
                if key not in held:
                    held.add(key)
                    masks[key] = masks.get(key, 0) | bit
            elif key in held:
                held.discard(key)
                self._clear(bit, key)

    def keys(self, bit: int) -> Set[int]:
        """The keys of a slot; for reading only."""
        return self._keys[bit]

    def sweep(self, budget: int) -> bool:
        """Remove at most ``budget`` keys of retired slots; whether any are left."""
        while self._retired:
            bit = self._retired[0]
            held = self._keys[bit]
            while held:
                if budget <= 0:
                    return True
                self._clear(bit, held.pop())
                budget -= 1
            del self._keys[bit]
            self._retired.popleft()
            self._free.append(bit)
        return False

    @property
    def retired_keys(self) -> int:
        """Keys of retired slots that are not swept yet."""
        return sum(len(self._keys[bit]) for bit in self._retired)

    def _clear(self, bit: int, key: int) -> None:
        mask = self.masks[key] & ~bit
        if mask:
            self.masks[key] = mask
        else:
            del self.masks[key]
