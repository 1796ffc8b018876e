"""Layouts and tensors."""

import ml_dtypes
import numpy as np
import pytest

from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.kv import KVLayout, KVTensor, numpy_dtype

LLAMA = KVLayout(32, 8, 128)
MLA = KVLayout(61, 1, 576, "bfloat16", planes=1)
SMALL = KVLayout(2, 3, 4, "float32")


def test_sizes_of_known_models():
    assert LLAMA.bytes_per_token == 32 * 2 * 8 * 128 * 2 == 131_072
    assert LLAMA.shape(256) == (32, 2, 256, 8, 128)
    assert LLAMA.nbytes(256) == 32 * 2**20
    assert MLA.bytes_per_token == 61 * 576 * 2
    assert MLA.shape(5) == (61, 1, 5, 1, 576)


@pytest.mark.parametrize(
    ("name", "dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16), ("float32", np.float32)]
)
def test_dtypes(name, dtype):
    assert numpy_dtype(name) == np.dtype(dtype)
    assert KVLayout(1, 1, 1, name).np_dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": 65_536}, "num_layers"),
        ({"num_kv_heads": -1}, "num_kv_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"planes": 0}, "planes"),
        ({"planes": 3}, "planes"),
        ({"dtype": "float64"}, "float64"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_impossible_layouts_are_refused_by_name(wrong, named):
    with pytest.raises(InvalidRequestError, match=named):
        KVLayout(**{"num_layers": 1, "num_kv_heads": 1, "head_dim": 1, **wrong})


def array(layout, tokens):
    rng = np.random.default_rng(tokens)
    return rng.standard_normal(layout.shape(tokens), dtype=np.float32).astype(layout.np_dtype)


@pytest.mark.parametrize("layout", [SMALL, KVLayout(3, 2, 5, "float16"), KVLayout(2, 1, 6, "bfloat16", planes=1)])
def test_bytes_and_back_without_copying(layout):
    kv = KVTensor(layout, array(layout, 7))
    view = kv.tobytes_view()
    assert view.nbytes == kv.nbytes == layout.nbytes(7)
    again = KVTensor.from_bytes(view, layout, 7)
    assert again.num_tokens == 7
    assert again.data.tobytes() == kv.data.tobytes()
    assert np.shares_memory(again.data, kv.data)


def test_the_bytes_are_in_the_documented_order():
    kv = KVTensor.empty(SMALL, 5)
    kv.data[...] = np.arange(kv.data.size, dtype=np.float32).reshape(kv.data.shape)
    layer, plane, token, head, position = 1, 0, 3, 2, 1
    index = (((layer * 2 + plane) * 5 + token) * 3 + head) * 4 + position
    assert np.frombuffer(kv.tobytes_view(), np.float32)[index] == kv.data[layer, plane, token, head, position] == index


@pytest.mark.parametrize(
    "shape", [(2, 2, 5, 3), (2, 2, 5, 3, 4, 1), (1, 2, 5, 3, 4), (2, 1, 5, 3, 4), (2, 2, 5, 4, 4), (2, 2, 5, 3, 5), ()]
)
def test_arrays_of_another_shape_are_refused_with_both_shapes(shape):
    with pytest.raises(InvalidRequestError, match="the layout wants") as caught:
        KVTensor(SMALL, np.zeros(shape, np.float32))
    assert str(shape) in caught.value.message


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int32])
def test_arrays_of_another_dtype_are_refused(dtype):
    with pytest.raises(InvalidRequestError, match="the layout wants float32"):
        KVTensor(SMALL, np.zeros(SMALL.shape(5), dtype))


@pytest.mark.parametrize("difference", [-1, 1, -480, 480])
def test_bytes_of_another_size_are_refused_with_both_sizes(difference):
    size = SMALL.nbytes(5)
    with pytest.raises(InvalidRequestError, match=f"{size + difference} bytes do not make 5 tokens.*{size}"):
        KVTensor.from_bytes(bytes(size + difference), SMALL, 5)


def test_a_view_that_is_not_contiguous_is_copied_into_one_that_is():
    data = array(SMALL, 9)[:, :, ::2]
    kv = KVTensor(SMALL, data)
    assert kv.data.flags.c_contiguous
    assert np.array_equal(kv.data, data)


def test_slices_and_their_concatenation():
    kv = KVTensor(SMALL, array(SMALL, 10))
    parts = [kv.tokens(0, 4), kv.tokens(4, 4), kv.tokens(4, 9), kv.tokens(9, 10)]
    assert [part.num_tokens for part in parts] == [4, 0, 5, 1]
    assert all(part.data.flags.c_contiguous for part in parts)
    assert np.array_equal(KVTensor.concat(parts).data, kv.data)
    parts[0].data[...] = 0
    assert kv.data[:, :, :4].any()  # a slice is a copy


def test_concatenation_needs_parts_of_one_layout():
    with pytest.raises(InvalidRequestError, match="at least one part"):
        KVTensor.concat([])
    other = KVLayout(2, 3, 4, "float16")
    with pytest.raises(InvalidRequestError, match="different layouts"):
        KVTensor.concat([KVTensor.empty(SMALL, 1), KVTensor.empty(other, 1)])


def test_no_tokens_at_all():
    kv = KVTensor.from_bytes(b"", SMALL, 0)
    assert (kv.num_tokens, kv.nbytes) == (0, 0)
    assert bytes(kv.tobytes_view()) == b""
