"""nvCOMP's ANS coder (``nvidia-nvcomp-cu13``), the vendor's general entropy coder for GPUs.

It codes bytes in pieces of 64 KiB, each with its own table; symbols of all channels share a piece. ``symbols`` is the
entropy stage alone: the symbols of LMCache's quantizer, without its maxima, and back to symbols. ``bfloat16`` is
lossless coding of the values by nvCOMP's mode for 16-bit floats.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from gpu_contenders import Case, Contender, UnavailableError
from lmcache_cuda import bins_of, quantize

__all__ = ["NvcompAns", "load_nvcomp"]


def load_nvcomp() -> Any:
    """The module ``nvidia.nvcomp``. Raises UnavailableError where there is none."""
    try:
        import nvidia
    except ImportError:
        raise UnavailableError("nvidia-nvcomp-cu13 is not installed") from None
    # Where one part of the namespace is a regular package, Python looks nowhere else for its modules.
    known = [str(Path(path).resolve()) for path in nvidia.__path__]
    more = [
        str(Path(entry or ".", "nvidia").resolve()) for entry in sys.path if Path(entry, "nvidia", "nvcomp").is_dir()
    ]
    if set(more) - set(known):
        nvidia.__path__ = [*known, *(path for path in more if path not in known)]
    try:
        return importlib.import_module("nvidia.nvcomp")
    except (ImportError, OSError, RuntimeError) as error:
        raise UnavailableError(f"nvidia-nvcomp-cu13 does not load: {error}") from None


class NvcompAns(Contender):
    """See the module.

    Args:
        case: what is coded.
        nvcomp: from :func:`load_nvcomp`.
        device: where.
        what: the symbols or the values themselves.
    """

    def __init__(self, case: Case, nvcomp: Any, device: str, what: Literal["symbols", "bfloat16"]) -> None:
        self.name = f"nvcomp ans, {what}"
        self.covers = "entropy stage only" if what == "symbols" else "lossless coding of the values"
        if device != "cuda":
            raise UnavailableError("it needs a CUDA GPU")
        self._case, self._nvcomp, self._what = case, nvcomp, what
        self._bins = bins_of(case, device)
        if what == "symbols" and len(self._bins) != case.shape[1]:
            raise UnavailableError("the quantizer has at most two planes")
        self._codec = nvcomp.Codec(algorithm="ANS", data_type="|u1" if what == "symbols" else "<f2")
        size = case.elements * (1 if what == "symbols" else 2)
        self._compress = self._codec.compression_config(size)
        self._decompress = self._codec.decompression_config(self._compress)

    def prepare(self, kv: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The bytes to code, and nvCOMP's view of them."""
        source = kv.contiguous()
        if self._what == "symbols":
            chunks, layers, planes, tokens, heads, dim = kv.shape
            flat = kv.reshape(chunks, layers, planes, tokens, heads * dim)
            source = torch.stack(
                [
                    torch.stack([quantize(chunk[:, plane], self._bins[plane])[0] for plane in range(planes)], dim=1)
                    for chunk in flat
                ]
            )
        data = source.view(torch.uint8).flatten()
        torch.cuda.synchronize()  # nvCOMP works on a stream of its own
        return data, self._nvcomp.as_array(data)

    def encode(self, handle: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        data, array = handle
        return data, self._codec.encode(array, compression_config=self._compress)

    def decode(self, encoded: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        data, array = encoded
        return data, self._codec.decode(array, "|u1", decompression_config=self._decompress)

    def restored(self, decoded: tuple[torch.Tensor, Any]) -> torch.Tensor:
        """The values; for symbols, the symbols checked against what was coded, and no values: they have none."""
        data, array = decoded
        torch.cuda.synchronize()
        back = torch.from_dlpack(array).view(torch.uint8).flatten()
        if not torch.equal(back, data):
            raise RuntimeError(f"{self.name} did not give back what it coded")
        if self._what == "symbols":
            raise UnavailableError("the entropy stage alone restores no values")
        layers, planes, tokens, heads, dim = self._case.shape
        return back.view(torch.bfloat16).view(-1, layers, planes, tokens, heads, dim)

    def sizes(self, encoded: tuple[torch.Tensor, Any]) -> dict[str, int]:
        torch.cuda.synchronize()
        return {"streams": int(encoded[1].buffer_size)}
