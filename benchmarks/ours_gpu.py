"""Our cachegen as the comparison on the GPU drives it: the one place that knows our interfaces.

Values go to the kernels (`lmcache_kit_kernels.blocks`) and come back as jax arrays, without a copy; payloads are made
and read by the compression method (`lmcache_kit_cachegen`). On the CPU the kernels' numpy implementation takes their
place, to see that the script works.
"""

from __future__ import annotations

import dataclasses
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
        try:
            from lmcache_kit_cachegen.levels import LEVELS, UNIFORM_SYMBOLS, lmcache_levels
            from lmcache_kit_cachegen.method import CacheGen, fold_of
            from lmcache_kit_cachegen.options import DEFAULT_SINK_TOKENS, CacheGenOptions
            from lmcache_kit_kernels import backends_of, blocks
            from lmcache_kit_kernels.tables import builtin_tables_by_levels
        except ImportError as error:
            raise UnavailableError(f"our packages are not all installed: {error}") from None
        if device == "cuda":
            import jax

            if jax.default_backend() != "gpu":
                raise UnavailableError(f"jax {jax.__version__} sees no GPU, only {jax.default_backend()}")
        self._case, self._device, self._blocks = case, device, blocks
        self._backend: Literal["pallas", "numpy"] = "pallas" if device == "cuda" else "numpy"
        if self._backend not in backends_of("blocks"):
            raise UnavailableError(f"the kernels have no backend {self._backend}")
        layers, planes, tokens, heads, dim = case.shape
        uniform = quantizer == "uniform"
        refined = (tokens if LEVELS[level].refine_all else min(tokens, DEFAULT_SINK_TOKENS)) if uniform else 0
        self._settings = blocks.Settings(
            quantizer=quantizer,
            levels=((UNIFORM_SYMBOLS,) * (layers * planes) if uniform else lmcache_levels(layers, planes))
            * case.chunks,
            ratio=LEVELS[level].ratio if uniform else 0,
            refined_tokens=refined,
            refine_bits=LEVELS[level].refine_bits if refined else 0,
            fold=fold_of(tokens, heads * dim),
            tables=builtin_tables_by_levels(),
        )
        options = CacheGenOptions(
            quantizer=quantizer,
            level=level if uniform else None,
            backend=self._backend,
            device="gpu" if device == "cuda" else "cpu",
        )
        self._layout = KVLayout(layers, heads, dim, "bfloat16", planes)
        self._method: Any = None
        self._no_method = ""
        try:
            self._method = CacheGen(options)
        except LMCacheKitError as error:
            self._no_method = str(error)

    def prepare(self, kv: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The tensor, and its blocks ``[B, T, C]`` as the kernels take them."""
        _, _, tokens, heads, dim = self._case.shape
        flat = kv.contiguous().view(-1, tokens, heads * dim)
        if self._device != "cuda":
            return kv, _as_numpy(flat)
        import jax

        return kv, jax.dlpack.from_dlpack(flat)

    def encode(self, handle: tuple[torch.Tensor, Any]) -> Any:
        return self._blocks.encode(handle[1], self._settings, backend=self._backend)

    def decode(self, encoded: Any) -> Any:
        return self._blocks.decode(encoded, self._settings, _bfloat16(), backend=self._backend)

    def wait(self, value: Any) -> None:
        if self._device == "cuda":
            import jax

            jax.block_until_ready(_arrays(value))

    def restored(self, decoded: Any) -> torch.Tensor:
        layers, planes, tokens, heads, dim = self._case.shape
        if isinstance(decoded, list):
            flat = torch.stack([_as_torch(kv.data) for kv in decoded])
        else:
            flat = torch.from_dlpack(decoded) if self._device == "cuda" else _as_torch(decoded)
        return flat.view(-1, layers, planes, tokens, heads, dim).to(self._device)

    def sizes(self, encoded: Any) -> dict[str, int]:
        fields = {field.name: getattr(encoded, field.name) for field in dataclasses.fields(encoded)}
        return {name: int(array.nbytes) for name, array in fields.items() if array is not None}

    def to_bytes(self, handle: tuple[torch.Tensor, Any]) -> Sequence[Any]:
        self._need_method()
        host = handle[0].cpu()
        payloads: Sequence[Any] = self._method.encode_many([KVTensor(self._layout, _as_numpy(chunk)) for chunk in host])
        return payloads

    def from_bytes(self, payloads: Sequence[Any]) -> list[KVTensor]:
        self._need_method()
        tokens = [self._case.shape[2]] * len(payloads)
        views = [memoryview(payload) for payload in payloads]
        kvs: list[KVTensor] = self._method.decode_many(views, self._layout, tokens, self._method.version)
        for kv in kvs:
            _as_torch(kv.data).to(self._device)
        return kvs

    def _need_method(self) -> None:
        if self._method is None:
            raise UnavailableError(self._no_method)


def _arrays(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [value]


def _bfloat16() -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(ml_dtypes.bfloat16)


def _as_numpy(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().view(torch.int16).numpy().view(_bfloat16())


def _as_torch(array: Any) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
