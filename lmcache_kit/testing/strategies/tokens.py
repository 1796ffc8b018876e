"""Prompts as token ids, alone and in families that share prefixes."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["prefix_trees", "token_lists"]


def token_lists(*, vocab_size: int = 32_000, min_size: int = 0, max_size: int = 80) -> st.SearchStrategy[list[int]]:
    """Lists of token ids from 0 to ``vocab_size - 1``: any mixture, and runs of one token."""
    ids = st.integers(0, vocab_size - 1)
    runs = st.builds(lambda token, length: [token] * length, ids, st.integers(min_size, max_size))
    return st.lists(ids, min_size=min_size, max_size=max_size) | runs


@st.composite
def prefix_trees(
    draw: st.DrawFn, *, vocab_size: int = 32_000, block: int = 1, max_prompts: int = 8, max_blocks: int = 6
) -> list[list[int]]:
    """Prompts that share prefixes with prompts before them, as conversations, retries and forks do.

    Args:
        vocab_size: token ids are 0 to ``vocab_size - 1``.
        block: prefixes are cut at multiples of so many tokens, and then at times anywhere, also within a block.
        max_prompts: at least one and at most so many prompts.
        max_blocks: a prompt grows by at most so many blocks beyond what it shares.

    Returns the prompts, each of at least one token. Some are equal, some are prefixes of others.
    """
    prompts: list[list[int]] = []
    for _ in range(draw(st.integers(1, max_prompts))):
        shared: list[int] = []
        shares = draw(st.booleans())
        if prompts and shares:
            parent = draw(st.sampled_from(prompts))
            cut = draw(st.integers(0, len(parent) // block)) * block + draw(st.sampled_from([0, 0, 0, 1, block - 1]))
            shared = parent[:cut]
        # Few different tokens: two prompts then meet again by chance, and diverge at any place.
        few = st.integers(0, min(vocab_size, 3) - 1) | st.integers(0, vocab_size - 1)
        fresh = draw(st.lists(few, min_size=0 if shared else 1, max_size=max_blocks * block))
        prompts.append(shared + fresh)
    return prompts
