from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from lmcache_kit.codec_tools import convert_kv, random_kv, read_kv, read_samples, write_kv
from lmcache_kit.errors import ConfigError
from lmcache_kit.kv import KVLayout

NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "int8": "I8"}
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "int8": 1}


def by_hand(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    """A safetensors file written from its specification: header length, JSON header, the bytes."""
    header, body = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def zeros(dtype: str, shape: list[int]) -> tuple[str, list[int], bytes]:
    return dtype, shape, bytes(SIZES[dtype] * int(np.prod(shape)))


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, dtype: str, planes: int) -> None:
    kv = random_kv(KVLayout(3, 2, 5, dtype, planes), 7, seed=1)
    kv.data[0, 0, 0, 0, :3] = [np.nan, np.inf, -0.0]
    write_kv(tmp_path / "a.safetensors", kv, {"model": "m"})
    again = read_kv(tmp_path / "a.safetensors")
    assert again.layout == kv.layout
    assert bytes(again.tobytes_view()) == bytes(kv.tobytes_view())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_file_that_others_wrote_is_read(tmp_path: Path, dtype: str) -> None:
    kv = random_kv(KVLayout(2, 2, 3, dtype), 4, seed=2)
    raw = bytes(kv.tobytes_view())
    file = by_hand(tmp_path / "a", {"other": zeros("int8", [3]), "kv": (dtype, [2, 2, 4, 2, 3], raw)})
    again = read_kv(file)
    assert again.layout == kv.layout
    assert bytes(again.tobytes_view()) == raw


@pytest.mark.parametrize(
    ("tensors", "message", "hint"),
    [
        ({"k": zeros("float32", [1]), "v": zeros("float32", [1])}, "has no tensor named 'kv'", "it holds k, v"),
        ({}, "has no tensor named 'kv'", "no tensor"),
        ({"kv": zeros("float32", [2, 2, 4, 6])}, r"kv has shape \[2, 2, 4, 6\]", "layers, 2, tokens"),
        ({"kv": zeros("float32", [2, 3, 4, 1, 1])}, r"kv has shape \[2, 3, 4, 1, 1\]", "layers, 2, tokens"),
        ({"kv": zeros("float32", [2, 2, 0, 1, 1])}, r"kv has shape \[2, 2, 0, 1, 1\]", "layers, 2, tokens"),
        ({"kv": zeros("float64", [2, 2, 4, 1, 1])}, "kv holds F64", "bfloat16, float16, float32"),
        ({"kv": zeros("int8", [2, 2, 4, 1, 1])}, "kv holds I8", "bfloat16, float16, float32"),
    ],
)
def test_a_file_without_such_a_tensor_is_refused(tmp_path: Path, tensors, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_kv(by_hand(tmp_path / "a", tensors))
    assert hint in (caught.value.hint or "")


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no header here, just words")
    (tmp_path / "empty").write_bytes(b"")
    whole = by_hand(tmp_path / "whole", {"kv": zeros("float32", [2, 2, 4, 1, 1])})
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-1])
    for name in ("text", "empty", "cut"):
        with pytest.raises(ConfigError, match="is not a safetensors file"):
            read_kv(tmp_path / name)
    for name in ("nowhere", "."):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_kv(tmp_path / name)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    kv = random_kv(KVLayout(1, 1, 1), 1, seed=0)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_kv(tmp_path / "no" / "folder", kv)


def test_samples_are_read_one_by_one_and_share_a_layout(tmp_path: Path) -> None:
    for number, dtype in enumerate(["float32", "float32", "float16"]):
        write_kv(tmp_path / str(number), random_kv(KVLayout(1, 1, 2, dtype), number + 1, seed=0))
    samples = read_samples([tmp_path / "0", tmp_path / "1", tmp_path / "2"])
    assert [next(samples).num_tokens, next(samples).num_tokens] == [1, 2]
    with pytest.raises(ConfigError, match=r"/2 holds KV of another model or dtype than .*/0"):
        next(samples)


def test_conversion_rounds_and_refuses_what_does_not_fit() -> None:
    kv = random_kv(KVLayout(1, 1, 3, "float32"), 5, seed=0)
    half = convert_kv(kv, "bfloat16")
    assert half.layout == KVLayout(1, 1, 3, "bfloat16")
    assert np.array_equal(half.data, kv.data.astype(half.data.dtype))
    kv.data[0, 0, 0, 0, 0] = np.inf
    assert np.isinf(convert_kv(kv, "float16").data[0, 0, 0, 0, 0].astype(np.float32))
    kv.data[0, 0, 0, 0, 0] = 70_000
    with pytest.raises(ConfigError, match="values that float16 cannot"):
        convert_kv(kv, "float16")
