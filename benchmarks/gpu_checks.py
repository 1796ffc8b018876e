"""Whether LMCache's coder and our copy of its quantizer agree, symbol by symbol and bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from gpu_contenders import Case, UnavailableError
from lmcache_cuda import LMCacheCuda, bins_of, quantize
from lmcache_kit_kernels.quantize import dequantize
from lmcache_kit_kernels.quantize import quantize as our_quantize

__all__ = ["check"]

_MOST_ELEMENTS = 1 << 24  # of a chunk: numpy takes a second or two


def check(case: Case, kv: torch.Tensor, ops: Callable[[], Any]) -> dict[str, int | str]:
    """Numbers of differing elements in the first chunk, all of which should be 0.

    ``our_symbols``, ``our_maxima``: our quantizer (numpy) against LMCache's arithmetic in PyTorch on the device.
    ``coded_symbols``: what LMCache's coder gives back against what it was given. ``our_values``: our reconstruction
    against LMCache's, bit by bit. The last two need LMCache's extension; ``coder`` says why it is not there.
    """
    layers, planes, tokens, heads, dim = case.shape
    if planes > 2:
        raise UnavailableError("LMCache's quantizer has at most two planes")
    if case.elements > case.chunks * _MOST_ELEMENTS:
        raise UnavailableError("too large to quantize on the CPU during a run; smaller shapes are checked")
    one, device = replace(case, chunks=1), str(kv.device)
    blocks = kv[0].reshape(layers * planes, tokens, heads * dim)
    bins = bins_of(one, device)
    theirs = [quantize(blocks[plane::planes], bins[plane]) for plane in range(planes)]
    levels = (torch.stack(bins, dim=1).flatten().cpu().numpy() - 1).astype(np.int32)
    symbols, maxima = our_quantize(blocks.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16), levels)
    found: dict[str, int | str] = {"elements": int(symbols.size), "our_symbols": 0, "our_maxima": 0}
    for plane, (their_symbols, their_maxima) in enumerate(theirs):
        of_plane = slice(plane, None, planes)
        found["our_symbols"] += int((their_symbols.cpu().numpy() != symbols[of_plane].view(np.int8)).sum())
        found["our_maxima"] += int((their_maxima[..., 0].float().cpu().numpy() != maxima[of_plane]).sum())
    try:
        lmcache = LMCacheCuda(one, ops(), device)
    except UnavailableError as error:
        found["coder"] = str(error)
        return found
    (chunk,) = lmcache.encode(lmcache.prepare(kv[:1]))
    back = lmcache.decode_symbols(chunk).view(torch.int8)
    found["coded_symbols"] = int((back != torch.cat([symbols for symbols, _ in theirs])).sum())
    restored = lmcache.restored(lmcache.decode([chunk])).reshape(blocks.shape).view(torch.int16).cpu().numpy()
    found["our_values"] = int((restored != dequantize(symbols, maxima, levels).view(np.int16)).sum())
    return found
