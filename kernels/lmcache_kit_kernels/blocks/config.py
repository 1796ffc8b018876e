"""Tuning of the Pallas kernels, and what was measured on an H100 on the way to it.

Two choices are not numbers, and shaped the kernels more than any number:

- Decoding looks a slot up in two small tables: 1 byte for the symbol of each of 1024 slots, then 4 bytes for its
  frequency and start. One table of 4-byte entries for slots (128 KB for an alphabet) missed the first-level cache
  11 % of the time, and waiting for it was two thirds of a step.
- Which lanes of a warp take a word, and how many before each, is one ballot and two population counts. The scan that
  it replaced took five shuffles, each waiting for the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONFIG", "Config"]


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes that change speed and no result.

    Args:
        warps: warps of a program. They have nothing to do with each other, but a multiprocessor holds no more than 32
            programs: programs of one warp would leave half of the 64 warps that it can hold empty.
        tokens_at_once: tokens whose loads stand in front of their arithmetic, so that the latency of memory is paid
            once for all of them. Each takes a register per channel of a lane.
        strip: channels that a program reads at once where it goes along a token; a power of two, as Triton wants. 1024
            are one strip in most models.
        max_fold: channels of a lane that a program's registers hold. Chunks with more, which are short ones, go to the
            XLA implementation.
    """

    warps: int = 4
    tokens_at_once: int = 8
    strip: int = 1024
    max_fold: int = 4


CONFIG = Config()
"""What the kernels are built with."""
