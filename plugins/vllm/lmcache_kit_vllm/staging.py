"""Memory that KV passes through between the ranks' blocks and the cache.

The scheduler's process owns it and gives out pieces; the ranks, which may be other processes, only map it. It has no
name in a file system, so that nothing is left behind however the processes end.
"""

from __future__ import annotations

import bisect
import mmap
import os
import threading
from dataclasses import dataclass

import numpy as np

from lmcache_kit.errors import ConfigError
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["MappedStaging", "Piece", "Staging", "usual_size"]

_ALIGNMENT = 4096
_SMALLEST, _LARGEST = 64 * 2**20, 4 * 2**30


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes ``offset`` to ``offset + nbytes`` of the staging memory, which hold ``num_tokens`` tokens' KV."""

    offset: int
    nbytes: int
    num_tokens: int


def usual_size(layout: KVLayout, batch_tokens: int) -> int:
    """Bytes for twice the tokens that one step computes, between 64 MiB and 4 GiB."""
    return min(_LARGEST, max(_SMALLEST, 2 * layout.nbytes(batch_tokens)))


class MappedStaging:
    """The memory as a rank sees it.

    Args:
        place: what :attr:`Staging.place` says.

    Raises ConfigError when the memory is not to be reached from this process, as on another host.
    """

    def __init__(self, place: tuple[str, int]) -> None:
        path, size = place
        try:
            with open(path, "r+b") as file:
                self._memory = mmap.mmap(file.fileno(), size)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the staging memory of the scheduler cannot be mapped: {error}",
                hint="all ranks of an engine must run on one host, as one user",
            ) from None
        self.address = np.frombuffer(self._memory, dtype=np.uint8)

    def tensor(self, piece: Piece, layout: KVLayout) -> KVTensor:
        """The piece as KV ``[L, P, T, H, D]``."""
        return _tensor(self._memory, piece, layout)


class Staging:
    """The memory as its owner sees it: pieces are given out from the lowest free address. Safe between threads.

    Args:
        size: bytes.
        layout: of the KV that passes through.

    Raises ConfigError where memory cannot be shared without a name.
    """

    def __init__(self, size: int, layout: KVLayout) -> None:
        self._layout = layout
        self._size = -(-size // _ALIGNMENT) * _ALIGNMENT
        if not hasattr(os, "memfd_create"):
            raise ConfigError("the connector needs memory without a name that processes share, as Linux has it")
        self._file: int | None = os.memfd_create("lmcache-kit staging")
        os.ftruncate(self._file, self._size)
        self._memory = mmap.mmap(self._file, self._size)
        self._free: list[tuple[int, int]] = [(0, self._size)]  # (offset, bytes) by offset, never adjoining
        self._lock = threading.Lock()

    @property
    def layout(self) -> KVLayout:
        return self._layout

    @property
    def place(self) -> tuple[str, int]:
        """Path and size under which ranks find the memory, until it is closed."""
        return f"/proc/{os.getpid()}/fd/{self._file}", self._size

    @property
    def free_bytes(self) -> int:
        with self._lock:
            return sum(nbytes for _, nbytes in self._free)

    def allocate(self, num_tokens: int, *, fewer: bool = False) -> Piece | None:
        """A piece for so many tokens; None when there is no room, or, with ``fewer``, not for a single one.

        With ``fewer`` the piece is as large as the largest hole when that is not enough.
        """
        with self._lock:
            return self._allocate(num_tokens, fewer)

    def _allocate(self, num_tokens: int, fewer: bool) -> Piece | None:
        wanted = _rounded(self._layout.nbytes(num_tokens))
        for index, (offset, nbytes) in enumerate(self._free):
            if nbytes >= wanted:
                self._take(index, wanted)
                return Piece(offset, wanted, num_tokens)
        if not fewer or not self._free:
            return None
        index = max(range(len(self._free)), key=lambda each: self._free[each][1])
        offset, nbytes = self._free[index]
        num_tokens = nbytes // self._layout.bytes_per_token
        if num_tokens == 0:
            return None
        self._take(index, nbytes)
        return Piece(offset, nbytes, num_tokens)

    def _take(self, index: int, nbytes: int) -> None:
        offset, held = self._free[index]
        if held == nbytes:
            del self._free[index]
        else:
            self._free[index] = (offset + nbytes, held - nbytes)

    def release(self, piece: Piece) -> None:
        """Give a piece back; exactly once."""
        with self._lock:
            self._release(piece)

    def _release(self, piece: Piece) -> None:
        index = bisect.bisect(self._free, (piece.offset, 0))
        start, stop = piece.offset, piece.offset + piece.nbytes
        if index < len(self._free) and self._free[index][0] == stop:
            stop += self._free.pop(index)[1]
        if index > 0 and sum(self._free[index - 1]) == start:
            index -= 1
            start = self._free.pop(index)[0]
        self._free.insert(index, (start, stop - start))

    def tensor(self, piece: Piece) -> KVTensor:
        """The piece as KV ``[L, P, T, H, D]``."""
        return _tensor(self._memory, piece, self._layout)

    def close(self) -> None:
        """Give the memory back to the system once nobody uses it any more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _rounded(nbytes: int) -> int:
    return max(1, -(-nbytes // _ALIGNMENT)) * _ALIGNMENT


def _tensor(memory: mmap.mmap, piece: Piece, layout: KVLayout) -> KVTensor:
    nbytes = layout.nbytes(piece.num_tokens)
    return KVTensor.from_bytes(memoryview(memory)[piece.offset : piece.offset + nbytes], layout, piece.num_tokens)
