"""Pieces of the staging memory: never two in one place, all room found again, seen alike by all processes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmcache_kit_vllm.staging import MappedStaging, Piece, Staging, usual_size

from lmcache_kit.errors import ConfigError
from lmcache_kit.kv.layout import KVLayout

LAYOUT = KVLayout(2, 2, 8, "bfloat16")  # 128 bytes a token, 32 tokens a page
PAGES = 40


@given(
    st.lists(st.one_of(st.integers(1, 500), st.tuples(st.integers(0, 50), st.booleans())), max_size=60), st.booleans()
)
def test_pieces_never_overlap_and_room_is_never_lost(actions, fewer):
    staging = Staging(PAGES * 4096, LAYOUT)
    used = np.zeros(PAGES, dtype=int)
    held: list[Piece] = []
    for action in actions:
        if isinstance(action, tuple):
            if held:
                piece = held.pop(action[0] % len(held))
                staging.release(piece)
                used[piece.offset // 4096 : (piece.offset + piece.nbytes) // 4096] -= 1
            continue
        piece = staging.allocate(action, fewer=fewer)
        runs = [len(run) for run in "".join("x" if page else "." for page in used).split("x")]
        pages = -(-LAYOUT.nbytes(action) // 4096)
        if piece is None:
            assert max(runs) < pages
            assert not fewer or max(runs) == 0
            continue
        assert piece.num_tokens == (action if max(runs) >= pages else max(runs) * 32)
        assert LAYOUT.nbytes(piece.num_tokens) <= piece.nbytes
        held.append(piece)
        used[piece.offset // 4096 : (piece.offset + piece.nbytes) // 4096] += 1
        assert used.max() == 1
    assert staging.free_bytes == (used == 0).sum() * 4096
    for piece in held:
        staging.release(piece)
    assert staging.allocate(PAGES * 32) is not None, "all of it in one piece again"
    staging.close()


def test_another_process_sees_the_same_memory_until_it_is_closed():
    staging = Staging(2**16, LAYOUT)
    piece = staging.allocate(5)
    staging.tensor(piece).data.view(np.uint16)[:] = np.arange(5 * 64).reshape(LAYOUT.shape(5))
    script = f"""
import numpy as np
from lmcache_kit.kv.layout import KVLayout
from lmcache_kit_vllm.staging import MappedStaging, Piece
mapped = MappedStaging({staging.place!r})
kv = mapped.tensor({piece!r}, KVLayout(2, 2, 8, "bfloat16")).data.view(np.uint16)
assert (kv.ravel() == np.arange(320)).all()
kv += 1
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert (staging.tensor(piece).data.view(np.uint16).ravel() == np.arange(1, 321)).all()
    place = staging.place
    staging.close()
    staging.close()
    with pytest.raises(ConfigError, match="cannot be mapped"):
        MappedStaging(place)


def test_it_has_no_name_that_could_be_left_behind():
    staging = Staging(2**16, LAYOUT)
    import os

    assert "memfd:" in os.readlink(staging.place[0])
    staging.close()


def test_the_usual_size_holds_two_steps_within_bounds():
    assert usual_size(LAYOUT, 100) == 64 * 2**20
    large = KVLayout(32, 8, 128, "bfloat16")
    assert usual_size(large, 8192) == 2 * large.nbytes(8192)
    assert usual_size(large, 131072) == 4 * 2**30
