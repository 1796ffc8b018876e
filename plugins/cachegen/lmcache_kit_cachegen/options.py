"""The options of ``cachegen``, checked when they are made."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lmcache_kit.contracts.records import Options
from lmcache_kit.errors import ConfigError

__all__ = ["ANCHOR_GROUP", "DEFAULT_LEVEL", "DEFAULT_SINK_TOKENS", "CacheGenOptions"]

DEFAULT_LEVEL = 4
DEFAULT_SINK_TOKENS = 4
ANCHOR_GROUP = 10
"""Tokens of a group with ``anchor_delta``, as in the paper."""

_REFINED_WHOLLY = 2


class CacheGenOptions(Options, frozen=True):
    """Options of ``cachegen``. They shape what is written; what is read says itself how it was written.

    Args:
        quantizer: ``uniform``, one step per layer and plane, or ``lmcache``, LMCache's symbols and values.
        level: of ``uniform``, 1 (near-lossless) to 6 (about 1.5 bits an element); 4 when null.
        sink_tokens: first tokens of each chunk that ``uniform`` keeps 2 bits finer at levels 3 to 6; 4 when null.
        anchor_delta: code tokens as differences to the first of each 10, in channels where that is smaller.
        profile: path of a profile file for ``uniform``, made by ``lmcache-kit codec fit``. What was written with a
            profile is read with that profile alone; what was written without one is read with any.
        backend: what does the arithmetic; the bytes are the same. ``auto`` is numba on the CPU.
        device: ``cpu``, ``gpu``, or ``auto``: where the KV is.
    """

    quantizer: Literal["uniform", "lmcache"] = "uniform"
    level: Annotated[int, Meta(ge=1, le=6)] | None = None
    sink_tokens: Annotated[int, Meta(ge=0, le=32768)] | None = None
    anchor_delta: bool = False
    profile: str | None = None
    backend: Literal["auto", "numpy", "numba", "xla", "pallas"] = "auto"
    device: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self) -> None:
        # msgspec checks bounds only of what it converts from plain values.
        if self.level is not None and not 1 <= self.level <= 6:
            raise ConfigError(f"cachegen has levels 1 to 6, not {self.level}")
        if self.sink_tokens is not None and not 0 <= self.sink_tokens <= 32768:
            raise ConfigError(f"sink_tokens of cachegen must be 0 to 32768, not {self.sink_tokens}")
        if self.quantizer == "lmcache":
            self._check_lmcache()
        elif self.sink_tokens is not None and self.effective_level <= _REFINED_WHOLLY:
            raise ConfigError(
                f"cachegen level {self.level} keeps every token finer, sink_tokens has nothing to add",
                hint="leave sink_tokens out, or choose a level from 3 to 6",
            )
        if self.device == "cpu" and self.backend == "pallas":
            raise ConfigError("backend pallas of cachegen runs on a GPU only", hint="use numba, numpy or xla, or auto")
        if self.device == "gpu" and self.backend in ("numpy", "numba"):
            raise ConfigError(
                f"backend {self.backend} of cachegen runs on the CPU only", hint="use pallas, xla or auto"
            )

    def _check_lmcache(self) -> None:
        if self.level is not None:
            raise ConfigError(
                f"quantizer lmcache has no level {self.level}: LMCache has one level, fixed by its layer rule",
                hint="leave level out, or use quantizer: uniform, which has levels 1 to 6",
            )
        if self.sink_tokens is not None:
            raise ConfigError(
                "quantizer lmcache has no sink_tokens: LMCache quantizes all tokens alike",
                hint="leave sink_tokens out, or use quantizer: uniform",
            )
        if self.profile is not None:
            raise ConfigError(
                "quantizer lmcache takes no profile: profiles hold steps and tables of quantizer uniform",
                hint="leave profile out, or use quantizer: uniform",
            )

    @property
    def effective_level(self) -> int:
        return DEFAULT_LEVEL if self.level is None else self.level
