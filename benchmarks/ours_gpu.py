"""Our cachegen as the comparison on the GPU drives it: the one place that knows our interfaces.

KV is handed to the compression method (`lmcache_kit_cachegen`) as tensors on the device. On the CPU its numpy kernels
take the place of the GPU's, to see that the script works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from gpu_contenders import Case, Contender, UnavailableError

from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["Ours"]


class Ours(Contender):
    """See the module.

    Args:
        case: what is coded.
        device: ``cuda`` or ``cpu``.
        quantizer: ours or LMCache's.
        level: of quantizer ``uniform``.
    """

    covers = "quantize, choose tables, code, pack; decode to bfloat16"

    def __init__(self, case: Case, device: str, quantizer: Literal["uniform", "lmcache"], level: int = 4) -> None:
        self.name = f"ours, {quantizer}" + (f" {level}" if quantizer == "uniform" else "")
        self._case, self._gpu = case, device == "cuda"
        layers, planes, _, heads, dim = case.shape
        self._layout = KVLayout(layers, heads, dim, "bfloat16", planes)
        try:
            self._method = _method(quantizer, level if quantizer == "uniform" else None, self._gpu)
        except ImportError as error:
            raise UnavailableError(f"our packages are not all installed: {error}") from None
        except LMCacheKitError as error:
            raise UnavailableError(str(error)) from None

    def prepare(self, kv: torch.Tensor) -> Any:
        """The tensor ``[n, L, P, T, H, D]``, and as jax sees it: the same memory, handed over once."""
        tensor = kv.contiguous().view(-1, *self._case.shape)
        if self._gpu:
            return tensor, self._method.hand_over(tensor)
        return [KVTensor(self._layout, _as_numpy(chunk)) for chunk in tensor]

    def encode(self, handle: Any) -> Any:
        return self._method.launch_encode(handle[1]) if self._gpu else self._method.encode_many(handle)

    def decode(self, encoded: Any) -> Any:
        return self._method.launch_decode(encoded) if self._gpu else self.from_bytes(encoded)

    def wait(self, value: Any) -> None:
        if self._gpu:
            import jax

            jax.block_until_ready(value.coded if hasattr(value, "coded") else value)

    def restored(self, decoded: Any) -> torch.Tensor:
        if isinstance(decoded, list):
            decoded = torch.stack([_as_torch(kv.data) for kv in decoded])
        elif not isinstance(decoded, torch.Tensor):
            decoded = torch.from_dlpack(decoded)
        return decoded.view(-1, *self._case.shape)

    def sizes(self, encoded: Any) -> dict[str, int]:
        if not self._gpu:
            return {"payload": sum(len(payload) for payload in encoded)}
        coded = encoded.coded
        sizes = {"words": 2 * int(coded.counts.sum())}
        for name in ("scales", "inverses", "centres", "tables", "refinements", "states", "counts"):
            array = getattr(coded, name)
            sizes[name] = 0 if array is None else int(array.nbytes)
        return sizes

    def to_bytes(self, handle: Any) -> Sequence[Any]:
        payloads: Sequence[Any] = (
            self._method.encode_tensors(handle[0]) if self._gpu else self._method.encode_many(handle)
        )
        return payloads

    def from_bytes(self, payloads: Sequence[Any]) -> Any:
        views = [memoryview(payload) for payload in payloads]
        tokens = self._case.shape[2]
        if self._gpu:
            return self._method.decode_tensors(views, self._layout, tokens, self._method.version)
        return self._method.decode_many(views, self._layout, [tokens] * len(views), self._method.version)


def _method(quantizer: Literal["uniform", "lmcache"], level: int | None, gpu: bool) -> Any:
    from lmcache_kit_cachegen.options import CacheGenOptions
    from lmcache_kit_cachegen.plugin import lmcache_kit_compression_methods

    (record,) = lmcache_kit_compression_methods()
    if gpu:
        return record.factory(CacheGenOptions(quantizer=quantizer, level=level, device="gpu"))
    return record.factory(CacheGenOptions(quantizer=quantizer, level=level, backend="numpy", device="cpu"))


def _bfloat16() -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(ml_dtypes.bfloat16)


def _as_numpy(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().view(torch.int16).numpy().view(_bfloat16())


def _as_torch(array: Any) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
