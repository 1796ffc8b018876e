"""Between paged blocks and KV by token, against indexing that a reader can check by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lmcache_kit_vllm.blocks import PackedBlocks, TokenBlocks, bits_of, slots
from lmcache_kit_vllm.packing import element_places
from lmcache_kit_vllm.rank_side import head_share

from lmcache_kit.kv.layout import KVLayout

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@given(
    start=st.integers(0, 100),
    count=st.integers(1, 60),
    ratio=st.sampled_from([1, 2, 4]),
    kernel=st.sampled_from([1, 4, 16]),
    data=st.data(),
)
def test_slots_name_block_and_token(start, count, ratio, kernel, data):
    size = ratio * kernel
    first, last = start // size, (start + count - 1) // size
    blocks = data.draw(st.lists(st.integers(0, 99), min_size=last - first + 1, max_size=last - first + 1, unique=True))
    block, offset = slots(blocks, start, start + count, block_size=size, kernel_block_size=kernel)
    for index in range(count):
        token = start + index
        place = blocks[token // size - first] * size + token % size  # of the scheduler's blocks, token by token
        assert int(block[index]) * kernel + int(offset[index]) == place


def random_bits(shape, dtype, seed=0):
    width = torch.empty(0, dtype=dtype).element_size()
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, width), dtype=np.uint8)  # NaN and infinities too
    return torch.from_numpy(raw).view(dtype).squeeze(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3)])
def test_token_blocks_whatever_order_they_lie_in(dtype, planes, order):
    shape = (6, 2, 4, planes * 3)  # blocks, heads, tokens, content
    stored = random_bits([shape[axis] for axis in order], dtype)
    cache = stored.permute(*np.argsort(order).tolist())
    assert tuple(cache.shape) == shape
    before = bits_of(cache).clone()
    blocks = TokenBlocks(cache, planes)
    block, offset = torch.tensor([5, 0, 3]), torch.tensor([1, 3, 0])
    kv = blocks.read(block, offset)
    assert tuple(kv.shape) == (planes, 3, 2, 3)
    for plane in range(planes):
        for token in range(3):
            for head in range(2):
                want = before[block[token], head, offset[token], plane * 3 : plane * 3 + 3]
                assert torch.equal(kv[plane, token, head], want)
    new = bits_of(random_bits(kv.shape, dtype, seed=1))
    blocks.write(block, offset, new)
    assert torch.equal(blocks.read(block, offset), new)
    changed = (bits_of(cache) != before).any(dim=-1).any(dim=1).nonzero().tolist()
    assert sorted(changed) == sorted([[5, 1], [0, 3], [3, 0]]), "no other token was touched"


def interleaved(size, dim):
    """A backend that writes K by pairs of dimensions and V by groups of tokens."""

    def write(key, value, key_cache, value_cache, places):
        for index, slot in enumerate(places.tolist()):
            block, token = divmod(slot, size)
            keys, values = key_cache[block].view(-1, size * dim), value_cache[block].view(-1, size * dim)
            for d in range(dim):
                keys[:, (d // 2) * 2 * size + token * 2 + d % 2] = key[index, :, d]
                values[:, (token // 2) * 2 * dim + d * 2 + token % 2] = value[index, :, d]

    return write


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "dim"), [(4, 6), (16, 8), (32, 64)])
def test_the_order_of_a_backend_is_found_by_asking_it(dtype, size, dim):
    write = interleaved(size, dim)
    places = element_places(write, block_size=size, head_dim=dim, dtype=dtype, num_heads=2)
    key, value = random_bits((5, 3, dim), dtype), random_bits((5, 3, dim), dtype, seed=1)
    at = torch.tensor([size + 1, 2, 3 * size - 1, 0, size])
    integer = bits_of(key).dtype
    halves = [torch.zeros((3, 3, size, dim), dtype=integer) for _ in range(2)]
    write(bits_of(key), bits_of(value), halves[0], halves[1], at)
    cache = torch.cat(halves, dim=2).view(3, 3, size, 2 * dim).view(dtype)
    blocks = PackedBlocks(cache, places)
    kv = blocks.read(at // size, at % size)
    assert torch.equal(kv[0], bits_of(key))
    assert torch.equal(kv[1], bits_of(value))
    other = torch.zeros_like(cache)
    PackedBlocks(other, places).write(at // size, at % size, kv)
    assert torch.equal(bits_of(other), bits_of(cache))


def test_a_backend_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="told apart"):
        element_places(lambda *_: None, block_size=4, head_dim=4, dtype=torch.float32)

    def crossed(key, value, key_cache, value_cache, places):
        interleaved(4, 4)(key.flip(2), value, key_cache, value_cache, places)
        key_cache[1, 0] = key_cache[1, 0].flip(0)

    with pytest.raises(ValueError, match="differently"):
        element_places(crossed, block_size=4, head_dim=4, dtype=torch.float32, num_heads=2)


@pytest.mark.parametrize(("heads", "ranks"), [(8, 1), (8, 2), (8, 8), (2, 8), (1, 4), (4, 4)])
def test_every_head_is_saved_once_and_held_by_as_many_ranks(heads, ranks):
    layout = KVLayout(1, heads, 4)
    saved, held = np.zeros(heads, dtype=int), np.zeros(heads, dtype=int)
    for rank in range(ranks):
        share = head_share(layout, rank, ranks)
        held[share.start : share.stop] += 1
        saved[share.start : share.stop] += share.saves
    assert (saved == 1).all()
    assert (held == max(1, ranks // heads)).all()
