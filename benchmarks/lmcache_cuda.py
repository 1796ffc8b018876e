"""LMCache's cachegen on its own CUDA kernels, without LMCache's Python packages.

Only the compiled extension of LMCache's wheel is loaded (``c_ops``, linked against PyTorch); what its Python code does
around the kernels is done here with the same PyTorch operations in the same order, as of LMCache 0.5.3:

- quantize each plane ``[L, T, C]`` by its tokens' maxima, float32, to int8;
- one cumulative table per (layer, channel) over all tokens of the chunk, 33 x uint16;
- one arithmetic-coded stream per (layer, channel) and piece of at most 256 tokens, all pieces with the chunk's table;
- gather the streams from their fixed slots of 256 bytes into one run;
- serialize by pickling the CUDA tensors.

LMCache codes one chunk at a time and knows two planes, K and V. A cache of one plane is coded here as K alone, and
``chunks_as_layers`` codes several chunks in one launch, as if they were more layers: neither is LMCache's own.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from gpu_contenders import Case, Contender, UnavailableError

__all__ = ["CodedChunk", "LMCacheCuda", "bins_of", "find_ops", "load_ops", "quantize"]

PIECE_TOKENS = 256
FUNCTIONS = ("calculate_cdf", "encode_fast_new", "decode_fast_prefsum")


def find_ops() -> Path:
    """The extension of the installed wheel. Raises UnavailableError when there is none."""
    try:
        files = importlib.metadata.files("lmcache") or []
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError("lmcache is not installed, and --lmcache-ops names no file") from None
    for file in files:
        if file.name.startswith("c_ops.") and file.suffix == ".so":
            return Path(str(file.locate()))
    raise UnavailableError("the installed lmcache has no c_ops extension")


def load_ops(path: Path) -> ModuleType:
    """The extension in ``path``, by itself. Raises UnavailableError where it does not load or lacks the coder."""
    try:
        loader = importlib.machinery.ExtensionFileLoader("c_ops", str(path))
        spec = importlib.util.spec_from_file_location("c_ops", path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise UnavailableError(f"{path.name} does not load beside torch {torch.__version__}: {error}") from None
    missing = [name for name in FUNCTIONS if not hasattr(module, name)]
    if missing:
        raise UnavailableError(f"{path.name} has no {', '.join(missing)}")
    return module


def bins_of(case: Case, device: torch.device | str) -> list[torch.Tensor]:
    """float32 ``[L]`` of each plane: 32 for K of layers 0-9 and V of layers 0-1, else 16; 32 in small models."""
    layers, planes = case.shape[:2]
    bins = []
    for fine in (10, 2)[:planes]:
        of_plane = torch.full((layers,), 16.0)
        of_plane[: layers if layers < 10 else fine] = 32
        bins.append(of_plane.to(device))
    return bins


def quantize(plane: torch.Tensor, bins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols int8 ``[L, T, C]`` and maxima ``[L, T, 1]`` of one plane ``[L, T, C]``, by LMCache's arithmetic."""
    middle = (bins // 2 - 1)[:, None, None]
    maxima = plane.abs().amax(dim=-1, keepdim=True)
    symbols = torch.round(plane * (middle / maxima) + middle)
    return symbols.to(torch.int8), maxima


@dataclass
class CodedChunk:
    """What LMCache keeps of a chunk; pickled as a whole to serialize it."""

    pieces: list[tuple[torch.Tensor, torch.Tensor, int]]  # uint8 run, int32 lengths [P*L, C], tokens
    cdf: torch.Tensor  # int16 [P*L, C, 33]
    maxima: list[torch.Tensor]  # of each plane, [L, T, 1]


class LMCacheCuda(Contender):
    """See the module.

    Args:
        case: what is coded.
        ops: the extension, from :func:`load_ops`.
        device: where.
        chunks_as_layers: one launch for all chunks.
    """

    covers = "quantize, tables, code, pack; decode to bfloat16"

    def __init__(self, case: Case, ops: Any, device: str, *, chunks_as_layers: bool = False) -> None:
        if case.shape[1] > 2:
            raise UnavailableError("cachegen has at most two planes")
        if chunks_as_layers and case.chunks == 1:
            raise UnavailableError("there is one chunk")
        self.name = "lmcache, chunks as layers" if chunks_as_layers else "lmcache"
        self._case, self._ops = case, ops
        self._as_layers = chunks_as_layers
        self._bins = [bins.repeat(case.chunks if chunks_as_layers else 1) for bins in bins_of(case, device)]
        _, planes, tokens, heads, dim = case.shape
        blocks = planes * self._bins[0].numel()
        # LMCache decodes into one buffer that it keeps.
        self._decoded = torch.zeros((tokens, blocks * heads * dim), dtype=torch.uint8, device=device)
        self._decoded = self._decoded.view(blocks, tokens, heads * dim)

    def prepare(self, kv: torch.Tensor) -> list[torch.Tensor]:
        """LMCache's own layout of each chunk, ``[P, L, T, C]``."""
        chunks, layers, planes, tokens, heads, dim = kv.shape
        flat = kv.reshape(chunks, layers, planes, tokens, heads * dim)
        if self._as_layers:
            return [flat.permute(2, 0, 1, 3, 4).reshape(planes, chunks * layers, tokens, heads * dim).contiguous()]
        return [chunk.transpose(0, 1).contiguous() for chunk in flat]

    def encode(self, handle: Sequence[torch.Tensor]) -> list[CodedChunk]:
        return [self._encode(chunk) for chunk in handle]

    def _encode(self, chunk: torch.Tensor) -> CodedChunk:
        quantized = [quantize(plane, bins) for plane, bins in zip(chunk.unbind(0), self._bins, strict=True)]
        symbols = torch.cat([symbols for symbols, _ in quantized])
        # The width of a table is read back from the device, as LMCache does: its encoder waits here.
        cdf = torch.cat(
            [
                self._ops.calculate_cdf(of_plane, int(bins.max()))
                for (of_plane, _), bins in zip(quantized, self._bins, strict=True)
            ]
        )
        blocks, tokens, channels = symbols.shape
        slots = torch.zeros((blocks, channels, PIECE_TOKENS), dtype=torch.uint8, device=chunk.device)
        lengths = torch.zeros((blocks, channels), dtype=torch.int32, device=chunk.device)
        pieces = []
        for start in range(0, tokens, PIECE_TOKENS):
            piece = symbols[:, start : start + PIECE_TOKENS]
            self._ops.encode_fast_new(cdf, piece, slots, lengths)
            pieces.append((pack(slots, lengths), lengths.clone(), piece.shape[1]))
        return CodedChunk(pieces, cdf, [maxima for _, maxima in quantized])

    def decode(self, encoded: Sequence[CodedChunk]) -> list[torch.Tensor]:
        return [self._decode(chunk) for chunk in encoded]

    def _decode(self, chunk: CodedChunk) -> torch.Tensor:
        symbols = self.decode_symbols(chunk)
        planes = symbols.view(len(chunk.maxima), -1, *symbols.shape[1:]).float().unbind(0)
        values = []
        for plane, bins, maxima in zip(planes, self._bins, chunk.maxima, strict=True):
            middle = (bins // 2 - 1)[:, None, None]
            values.append((plane - middle) / middle * maxima)
        return torch.stack(values).to(torch.bfloat16)

    def decode_symbols(self, chunk: CodedChunk) -> torch.Tensor:
        """uint8 ``[P*L, T, C]``; overwritten by the next call."""
        start = 0
        for run, lengths, tokens in chunk.pieces:
            ends = lengths.flatten().cumsum(0).view(lengths.shape)
            self._ops.decode_fast_prefsum(chunk.cdf, run, ends, self._decoded[:, start : start + tokens])
            start += tokens
        return self._decoded

    def restored(self, decoded: Sequence[torch.Tensor]) -> torch.Tensor:
        layers, planes, tokens, heads, dim = self._case.shape
        whole = torch.stack(list(decoded)).view(-1, planes, layers, tokens, heads, dim)
        if self._as_layers:
            whole = torch.stack(list(decoded)).view(planes, -1, layers, tokens, heads, dim).transpose(0, 1)
        return whole.transpose(1, 2)

    def sizes(self, encoded: Sequence[CodedChunk]) -> dict[str, int]:
        return {
            "tables": sum(chunk.cdf.nbytes for chunk in encoded),
            "streams": sum(run.nbytes for chunk in encoded for run, _, _ in chunk.pieces),
            "lengths": sum(lengths.nbytes for chunk in encoded for _, lengths, _ in chunk.pieces),
            "maxima": sum(maxima.nbytes for chunk in encoded for maxima in chunk.maxima),
        }

    def to_bytes(self, handle: Sequence[torch.Tensor]) -> list[bytes]:
        payloads = []
        for chunk in handle:
            with io.BytesIO() as file:
                pickle.dump(self._encode(chunk), file)
                payloads.append(file.getvalue())
        return payloads

    def from_bytes(self, payloads: Sequence[Any]) -> list[torch.Tensor]:
        return [self._decode(pickle.loads(payload)) for payload in payloads]


def pack(slots: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The used bytes of all slots ``[..., S]``, slot after slot, by an index of each byte as LMCache builds it."""
    used = lengths.flatten()
    unused = (slots.shape[-1] - used).cumsum(0)
    skipped = torch.zeros_like(unused)
    skipped[1:] = unused[:-1]
    index = skipped.repeat_interleave(used)
    index += torch.arange(index.numel(), device=index.device)
    return slots.flatten()[index]
