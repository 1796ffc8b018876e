"""KV in a safetensors file: one tensor named ``kv``, ``[L, P, T, H, D]``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lmcache_kit.errors import ConfigError
from lmcache_kit.kv.layout import DType, KVLayout, KVTensor

__all__ = ["TENSOR_NAME", "convert_kv", "read_kv", "read_samples", "write_kv"]

TENSOR_NAME = "kv"

_DTYPES: dict[str, DType] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def read_kv(path: Path) -> KVTensor:
    """The KV of a file. Raises ConfigError for a file that does not hold one tensor ``kv`` of five dimensions."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            if TENSOR_NAME not in names:
                raise ConfigError(
                    f"{path} has no tensor named {TENSOR_NAME!r}",
                    hint=f"it holds {', '.join(names[:5]) or 'no tensor'}{', ...' if len(names) > 5 else ''}",
                )
            part = file.get_slice(TENSOR_NAME)
            layout = _layout(path, part.get_shape(), part.get_dtype())
            data: np.ndarray[Any, np.dtype[Any]] = file.get_tensor(TENSOR_NAME)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a safetensors file: {error}") from None
    return KVTensor(layout, data)


def read_samples(paths: Iterable[Path]) -> Iterator[KVTensor]:
    """The KV of one file after the other. Raises ConfigError when it is of another layout than that of the first."""
    first: tuple[Path, KVLayout] | None = None
    for path in paths:
        kv = read_kv(path)
        first = first or (path, kv.layout)
        if kv.layout != first[1]:
            raise ConfigError(
                f"{path} holds KV of another model or dtype than {first[0]}", hint=f"{kv.layout} is not {first[1]}"
            )
        yield kv


def _layout(path: Path, shape: list[int], dtype: str) -> KVLayout:
    if len(shape) != 5 or shape[1] not in (1, 2) or min(shape) < 1:
        raise ConfigError(
            f"{path}: {TENSOR_NAME} has shape {shape}",
            hint="write it as [layers, 2, tokens, heads, head dim], planes 1 instead of 2 for latent attention",
        )
    if dtype not in _DTYPES:
        raise ConfigError(f"{path}: {TENSOR_NAME} holds {dtype}", hint=f"use one of {', '.join(get_args(DType))}")
    layers, planes, _, heads, dim = shape
    return KVLayout(layers, heads, dim, _DTYPES[dtype], planes)


def write_kv(path: Path, kv: KVTensor, metadata: dict[str, str] | None = None) -> None:
    """Write ``kv`` to a file, with texts that say where it came from. Raises ConfigError when it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({TENSOR_NAME: kv.data}, path, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def convert_kv(kv: KVTensor, dtype: DType) -> KVTensor:
    """``kv`` rounded to another dtype. Raises ConfigError when a finite value is beyond its range."""
    layout = KVLayout(
        kv.layout.num_layers, kv.layout.num_kv_heads, kv.layout.head_dim, dtype=dtype, planes=kv.layout.planes
    )
    with np.errstate(over="ignore", invalid="ignore"):
        data = kv.data.astype(layout.np_dtype)
    if bool(np.any(np.isfinite(kv.data) & ~np.isfinite(data))):
        raise ConfigError(f"the KV holds values that {dtype} cannot", hint=f"leave it as {kv.layout.dtype}")
    return KVTensor(layout, data)
