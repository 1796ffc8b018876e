"""Profiles: tables and steps fitted to a model's KV, as a file.

What a payload was written with is needed to read it, so a profile has a fingerprint that payloads carry. It covers
everything but the model's name, which is for people.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from lmcache_kit_kernels.tables import TableSet, builtin_tables_by_levels

from lmcache_kit.errors import ConfigError, InvalidRequestError
from lmcache_kit.kv.layout import KVLayout
from lmcache_kit_cachegen.header import BUILT_IN
from lmcache_kit_cachegen.levels import UNIFORM_SYMBOLS

__all__ = ["Profile", "load_profile", "parse_profile"]

Array = np.ndarray[Any, np.dtype[Any]]

_FORMAT: Literal["lmcache-kit cachegen profile"] = "lmcache-kit cachegen profile"
_HINT = "fit it again with lmcache-kit codec fit --method cachegen"
_FINGERPRINT_BYTES = 16
# A mean of bfloat16 bit patterns of variances, all of which are finite and not negative.
_MOST_LOG_VARIANCE = 0x7F7F


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_layers: int
    planes: int
    num_kv_heads: int
    head_dim: int


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal["lmcache-kit cachegen profile"]
    version: Literal[1]
    model: str
    layout: _Shape
    log_variances: list[int] | None
    gains: list[int]
    thresholds: list[int]
    cover: list[int]
    frequencies: list[list[int]]
    fingerprint: str


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Tables of quantizer uniform, and steps, for KV of one shape in any dtype.

    Args:
        model: whose KV it was fitted to, in any words.
        shape: layers, planes, KV heads and head dimension.
        frequencies: uint16 ``[32, 127]``; with ``thresholds`` ``[31]``, ``cover`` ``[64]`` and ``gains`` ``[32]`` as in
            :class:`lmcache_kit_kernels.tables.TableSet`.
        log_variances: for each (layer, plane) the mean bfloat16 pattern of its channels' variances, from which the step
            follows; None to measure it in each chunk.

    Raises ConfigError for arrays that contradict each other.
    """

    model: str
    shape: tuple[int, int, int, int]
    frequencies: Array
    thresholds: Array
    cover: Array
    gains: Array
    log_variances: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or max(self.shape) > 0xFFFF or self.shape[1] > 2:
            raise ConfigError(f"a cachegen profile cannot be for the shape {self.shape}", hint=_HINT)
        given = self.log_variances
        if given is not None:
            blocks = self.shape[0] * self.shape[1]
            if len(given) != blocks or not all(0 <= value <= _MOST_LOG_VARIANCE for value in given):
                raise ConfigError(
                    f"log_variances of a cachegen profile must be {blocks} numbers from 0 to {_MOST_LOG_VARIANCE}",
                    hint=_HINT,
                )
        try:
            tables = self._table_set(BUILT_IN)
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigError(f"tables of a cachegen profile: {error}", hint=_HINT) from None
        for name in ("frequencies", "thresholds", "cover", "gains"):
            object.__setattr__(self, name, getattr(tables, name))

    def _table_set(self, fingerprint: bytes) -> TableSet:
        return TableSet(
            UNIFORM_SYMBOLS,
            np.asarray(self.frequencies),
            np.asarray(self.thresholds),
            np.asarray(self.cover),
            np.asarray(self.gains),
            fingerprint,
        )

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that name the profile in payloads: the beginning of the SHA-256 of its numbers."""
        steps = self.log_variances
        digest = hashlib.sha256(b"CGPF\x01")
        digest.update(struct.pack("<4H?", *self.shape, steps is not None))
        digest.update(np.array(steps or (), dtype="<u2").tobytes())
        for array, dtype in (
            (self.gains, "<u2"),
            (self.thresholds, "<u4"),
            (self.cover, "u1"),
            (self.frequencies, "<u2"),
        ):
            digest.update(array.astype(dtype).tobytes())
        return digest.digest()[:_FINGERPRINT_BYTES]

    @property
    def tables(self) -> Mapping[int, TableSet]:
        """What the kernels take."""
        return {**builtin_tables_by_levels(), UNIFORM_SYMBOLS: self._table_set(self.fingerprint)}

    def check_layout(self, layout: KVLayout) -> None:
        """Raises InvalidRequestError unless the profile is for KV of this shape."""
        shape = (layout.num_layers, layout.planes, layout.num_kv_heads, layout.head_dim)
        if shape != self.shape:
            raise InvalidRequestError(
                f"the cachegen profile of {self.model or 'a model without a name'} is for {_words(self.shape)}, "
                f"this KV has {_words(shape)}",
                hint="use a profile that was fitted to KV of this model, or none",
            )

    def to_json(self) -> bytes:
        """The contents of a profile file."""
        layers, planes, heads, dim = self.shape
        file = _File(
            format=_FORMAT,
            version=1,
            model=self.model,
            layout=_Shape(layers, planes, heads, dim),
            log_variances=None if self.log_variances is None else list(self.log_variances),
            gains=self.gains.tolist(),
            thresholds=self.thresholds.tolist(),
            cover=self.cover.tolist(),
            frequencies=self.frequencies.tolist(),
            fingerprint=self.fingerprint.hex(),
        )
        rows = ",\n  ".join(msgspec.json.encode(row).decode() for row in file.frequencies)
        others = {name: value for name, value in msgspec.to_builtins(file).items() if name != "frequencies"}
        lines = [f'"{name}": {msgspec.json.encode(value).decode()}' for name, value in others.items()]
        return ("{\n" + ",\n".join(lines) + ',\n"frequencies": [\n  ' + rows + "\n]\n}\n").encode()


def _words(shape: tuple[int, int, int, int]) -> str:
    return "{} layers of {} planes, {} KV heads of dimension {}".format(*shape)


def parse_profile(contents: bytes) -> Profile:
    """The profile in the contents of a file. Raises ConfigError, naming what is wrong, unless it is whole and as it was
    written."""
    try:
        file = msgspec.json.decode(contents, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a cachegen profile: {error}", hint=_HINT) from None
    layout = file.layout
    profile = Profile(
        model=file.model,
        shape=(layout.num_layers, layout.planes, layout.num_kv_heads, layout.head_dim),
        frequencies=_array("frequencies", file.frequencies),
        thresholds=_array("thresholds", file.thresholds),
        cover=_array("cover", file.cover),
        gains=_array("gains", file.gains),
        log_variances=None if file.log_variances is None else tuple(file.log_variances),
    )
    if profile.fingerprint.hex() != file.fingerprint:
        raise ConfigError("the numbers of a cachegen profile are not those its fingerprint is of", hint=_HINT)
    return profile


def _array(name: str, values: Any) -> Array:
    try:
        return np.array(values, dtype=np.int64)
    except (ValueError, OverflowError) as error:  # rows of different lengths, or numbers beyond 64 bits
        raise ConfigError(f"{name} of a cachegen profile: {error}", hint=_HINT) from None


def load_profile(path: str) -> Profile:
    """The profile in the file ``path``. Raises ConfigError when it cannot be read or is wrong."""
    try:
        contents = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cachegen profile {path!r} cannot be read: {error.strerror or error}",
            hint="make one with lmcache-kit codec fit --method cachegen, or leave profile out",
        ) from None
    try:
        return parse_profile(contents)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None
