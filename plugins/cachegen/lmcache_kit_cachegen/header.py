"""What all blocks of a payload share, and how a block can be written."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from lmcache_kit.kv.layout import KVLayout

__all__ = ["BUILT_IN", "Header", "Mode", "padded"]

BUILT_IN = bytes(16)
"""Fingerprint of the tables that come with the kernels."""


class Mode(IntEnum):
    """How a block is written."""

    VERBATIM = 0
    PACKED = 1
    CODED = 2
    ZERO = 3


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a payload's header; ``group`` lanes share a run of words, ``fold`` coder steps make a token."""

    layout: KVLayout
    num_tokens: int
    quantizer: Literal["lmcache", "uniform"]
    group: int
    fold: int
    refined_tokens: int
    refine_bits: int
    anchor_group: int
    offset_bytes: int
    exponent_bytes: int
    fingerprint: bytes

    @property
    def channels(self) -> int:
        return self.layout.num_kv_heads * self.layout.head_dim

    @property
    def lanes(self) -> int:
        return self.channels // self.fold

    @property
    def groups(self) -> int:
        """Groups of lanes; the last one may hold fewer."""
        return -(-self.lanes // self.group)

    @property
    def blocks(self) -> int:
        return self.layout.num_layers * self.layout.planes


def padded(size: int) -> int:
    """``size`` rounded up to a multiple of 4, as every section is."""
    return -(-size // 4) * 4
