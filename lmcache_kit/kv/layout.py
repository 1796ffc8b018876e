"""The shape of a KV cache and tensors of that shape.

A KV tensor is an array ``[L, P, T, H, D]``: layers, planes (2 for K and V; 1 for multi-head latent attention, which
stores one latent tensor), tokens, KV heads, head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lmcache_kit.errors import InvalidRequestError

__all__ = ["DType", "KVLayout", "KVTensor", "numpy_dtype"]

DType = Literal["bfloat16", "float16", "float32"]
DTYPES: tuple[str, ...] = get_args(DType)
MAX_DIM = 2**16 - 1

_NUMPY: dict[str, npt.DTypeLike] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
}


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype of a KV dtype name. Raises InvalidRequestError for a name outside :data:`DType`."""
    try:
        return np.dtype(_NUMPY[dtype])
    except KeyError:
        raise InvalidRequestError(
            f"KV dtype {dtype!r} is not supported", hint=f"use one of {', '.join(DTYPES)}"
        ) from None


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Everything about a KV cache's shape except the number of tokens.

    Args:
        num_layers: L, 1 to 65,535.
        num_kv_heads: H; 1 for multi-head latent attention.
        head_dim: D; the latent width for multi-head latent attention.
        dtype: element type.
        planes: P, 2 (K and V) or 1 (one latent tensor).
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: DType = "bfloat16"
    planes: int = 2

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_DIM:
                raise InvalidRequestError(f"{name} must be between 1 and {MAX_DIM}, got {value}")
        if self.planes not in (1, 2):
            raise InvalidRequestError(f"planes must be 2 (K and V) or 1 (latent attention), got {self.planes}")
        numpy_dtype(self.dtype)

    @property
    def np_dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.dtype)

    @property
    def bytes_per_token(self) -> int:
        """Uncompressed bytes that one token takes over all layers and planes."""
        return self.num_layers * self.planes * self.num_kv_heads * self.head_dim * self.np_dtype.itemsize

    def shape(self, num_tokens: int) -> tuple[int, int, int, int, int]:
        """``(L, P, T, H, D)`` for ``num_tokens`` tokens."""
        return (self.num_layers, self.planes, num_tokens, self.num_kv_heads, self.head_dim)

    def nbytes(self, num_tokens: int) -> int:
        """Uncompressed bytes of ``num_tokens`` tokens."""
        return self.bytes_per_token * num_tokens


@dataclass(frozen=True, slots=True, eq=False)
class KVTensor:
    """KV of consecutive tokens: ``data`` is a C-contiguous array ``[L, P, T, H, D]`` of the layout's dtype.

    Raises InvalidRequestError when the array does not have the layout's shape or dtype.
    """

    layout: KVLayout
    data: np.ndarray[Any, np.dtype[Any]]

    def __post_init__(self) -> None:
        if self.data.ndim != 5 or self.data.shape != self.layout.shape(self.data.shape[2]):
            want = ("L", "P", "T", "H", "D")
            raise InvalidRequestError(
                f"KV array has shape {self.data.shape}, the layout wants {self.layout.shape(-1)} {want} with T tokens"
            )
        if self.data.dtype != self.layout.np_dtype:
            raise InvalidRequestError(f"KV array holds {self.data.dtype}, the layout wants {self.layout.dtype}")
        if not self.data.flags.c_contiguous:
            object.__setattr__(self, "data", np.ascontiguousarray(self.data))

    @classmethod
    def from_bytes(cls, raw: Any, layout: KVLayout, num_tokens: int) -> KVTensor:
        """A tensor over the bytes of ``raw`` without copying. Raises InvalidRequestError when the size is wrong."""
        view = memoryview(raw).cast("B")
        if len(view) != layout.nbytes(num_tokens):
            raise InvalidRequestError(
                f"{len(view)} bytes do not make {num_tokens} tokens of this layout ({layout.nbytes(num_tokens)} bytes)"
            )
        return cls(layout, np.frombuffer(view, dtype=np.uint8).view(layout.np_dtype).reshape(layout.shape(num_tokens)))

    @classmethod
    def empty(cls, layout: KVLayout, num_tokens: int) -> KVTensor:
        """An uninitialised tensor to be filled through ``data``."""
        return cls(layout, np.empty(layout.shape(num_tokens), dtype=layout.np_dtype))

    @classmethod
    def concat(cls, parts: Sequence[KVTensor]) -> KVTensor:
        """The parts one after another along the token axis; they must share one layout."""
        if not parts:
            raise InvalidRequestError("nothing to concatenate: a KV tensor needs at least one part")
        layout = parts[0].layout
        if any(part.layout != layout for part in parts):
            raise InvalidRequestError("KV tensors of different layouts cannot be concatenated")
        return cls(layout, np.concatenate([part.data for part in parts], axis=2))

    @property
    def num_tokens(self) -> int:
        return int(self.data.shape[2])

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def tokens(self, start: int, stop: int) -> KVTensor:
        """A contiguous copy of tokens ``start`` to ``stop`` (exclusive)."""
        return KVTensor(self.layout, np.ascontiguousarray(self.data[:, :, start:stop]))

    def tobytes_view(self) -> memoryview:
        """The raw bytes in C order, without copying."""
        return self.data.reshape(-1).view(np.uint8).data
