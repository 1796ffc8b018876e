"""Prompts that share prefixes share chunks; work on a chunk is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["distinct_tokens", "without_repeats"]


def distinct_tokens(prompts: Iterable[tuple[str, Sequence[int]]], chunk_size: int) -> int:
    """Tokens in the chunks of the prompts of each owner, a chunk that several of them share counted once.

    Args:
        prompts: owner and tokens of each prompt.
        chunk_size: tokens per chunk; the last chunk of a prompt may be shorter.
    """
    # A chunk is what its tokens are and what stands before them, which the parent's number says.
    numbers: dict[tuple[str, int, tuple[int, ...]], int] = {}
    count = 0
    for owner, tokens in prompts:
        parent = 0
        for start in range(0, len(tokens), chunk_size):
            chunk = tuple(tokens[start : start + chunk_size])
            place = owner, parent, chunk
            if place not in numbers:
                numbers[place] = len(numbers) + 1
                count += len(chunk)
            parent = numbers[place]
    return count


def without_repeats(prompts: Iterable[tuple[str, Sequence[int]]]) -> list[int]:
    """Positions of the prompts that no earlier one of the same owner equals."""
    seen: set[tuple[str, tuple[int, ...]]] = set()
    kept = []
    for position, (owner, tokens) in enumerate(prompts):
        identity = owner, tuple(tokens)
        if identity not in seen:
            seen.add(identity)
            kept.append(position)
    return kept
