"""What is compared on the GPU, and the plain ways of storing a KV tensor: fp8, a device copy, the host link."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Case", "Contender", "DeviceCopy", "Fp8Cast", "HostLink", "UnavailableError"]


class UnavailableError(Exception):
    """Why a contender, or one of its measurements, cannot run here."""


@dataclass(frozen=True, slots=True)
class Case:
    """``chunks`` chunks of ``shape`` = (layers, planes, tokens, heads, head_dim), coded in one go."""

    chunks: int
    shape: tuple[int, int, int, int, int]

    @classmethod
    def parse(cls, text: str) -> Case:
        """From ``[N*]L,P,T,H,D``. Raises ValueError for anything else."""
        chunks, star, shape = text.rpartition("*")
        sizes = tuple(int(part) for part in shape.split(","))
        case = cls(int(chunks) if star else 1, sizes)  # type: ignore[arg-type]
        if len(sizes) != 5 or min(*sizes, case.chunks) < 1:
            raise ValueError(f"a shape is [N*]L,P,T,H,D with positive sizes, got {text!r}")
        return case

    def __str__(self) -> str:
        return ("" if self.chunks == 1 else f"{self.chunks}*") + ",".join(map(str, self.shape))

    @property
    def elements(self) -> int:
        layers, planes, tokens, heads, dim = self.shape
        return self.chunks * layers * planes * tokens * heads * dim

    @property
    def raw_bytes(self) -> int:
        return 2 * self.elements


class Contender(ABC):
    """One way of storing KV; made for one case. A KV tensor is bfloat16 ``[chunks, L, P, T, H, D]`` on the device.

    Every method raises UnavailableError, with the reason, where it cannot do its work.
    """

    name: str
    covers: str  # what encode and decode include

    @abstractmethod
    def prepare(self, kv: torch.Tensor) -> Any:
        """``kv`` as :meth:`encode` takes it; not timed."""

    @abstractmethod
    def encode(self, handle: Any) -> Any:
        """Buffers on the device. May return before the device is done."""

    @abstractmethod
    def decode(self, encoded: Any) -> Any:
        """The reverse, on the device."""

    @abstractmethod
    def restored(self, decoded: Any) -> torch.Tensor:
        """What :meth:`decode` or :meth:`from_bytes` returned, in the shape of the KV tensor; not timed."""

    @abstractmethod
    def sizes(self, encoded: Any) -> dict[str, int]:
        """Bytes of each part of the buffers."""

    def wait(self, value: Any) -> None:  # noqa: B027  PyTorch hands its work over before a call returns
        """Return once ``value`` has been handed to the device completely; the device may still work on it."""

    def to_bytes(self, handle: Any) -> Sequence[Any]:
        """From the device to bytes-like objects in host memory, encoding included."""
        raise UnavailableError("has no serialized form")

    def from_bytes(self, payloads: Sequence[Any]) -> Any:
        """From bytes-like objects in host memory to the device, decoding included."""
        raise UnavailableError("has no serialized form")


class Fp8Cast(Contender):
    """float8_e4m3fn with one scale for the tensor, in eager PyTorch; the scale stays on the device."""

    name = "fp8 cast"
    covers = "largest magnitude, scaling and cast"
    _LARGEST = 448.0

    def prepare(self, kv: torch.Tensor) -> torch.Tensor:
        return kv

    def encode(self, handle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = torch.linalg.vector_norm(handle, ord=torch.inf).float() / self._LARGEST
        return (handle / scale).to(torch.float8_e4m3fn), scale

    def decode(self, encoded: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        values, scale = encoded
        return values.to(torch.bfloat16) * scale

    def restored(self, decoded: torch.Tensor) -> torch.Tensor:
        return decoded

    def sizes(self, encoded: tuple[torch.Tensor, torch.Tensor]) -> dict[str, int]:
        return {"values": encoded[0].nbytes, "scale": encoded[1].nbytes}


class DeviceCopy(Contender):
    """A copy within the device's memory. Memory traffic is twice the bytes."""

    name = "device copy"
    covers = "one copy; traffic is twice the bytes"

    def prepare(self, kv: torch.Tensor) -> torch.Tensor:
        return kv

    def encode(self, handle: torch.Tensor) -> torch.Tensor:
        return handle.clone()

    def decode(self, encoded: torch.Tensor) -> torch.Tensor:
        return encoded.clone()

    def restored(self, decoded: torch.Tensor) -> torch.Tensor:
        return decoded

    def sizes(self, encoded: torch.Tensor) -> dict[str, int]:
        return {"values": encoded.nbytes}


class HostLink(Contender):
    """The raw tensor to pinned host memory and back. There is one host buffer: an encoded value holds the last."""

    name = "host link"
    covers = "one copy to pinned host memory, one back"

    def __init__(self) -> None:
        self._host: torch.Tensor | None = None

    def prepare(self, kv: torch.Tensor) -> torch.Tensor:
        if kv.device.type != "cuda":
            raise UnavailableError("there is no link without a CUDA device")
        if self._host is None:
            self._host = torch.empty(kv.shape, dtype=kv.dtype, pin_memory=True)
        return kv

    def encode(self, handle: torch.Tensor) -> torch.Tensor:
        assert self._host is not None
        return self._host.copy_(handle, non_blocking=True)

    def decode(self, encoded: torch.Tensor) -> torch.Tensor:
        return encoded.to("cuda", non_blocking=True)

    def restored(self, decoded: torch.Tensor) -> torch.Tensor:
        return decoded

    def sizes(self, encoded: torch.Tensor) -> dict[str, int]:
        return {"values": encoded.nbytes}
