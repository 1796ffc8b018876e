"""A method under test with the checks that every answer of it must pass, and arithmetic that is not its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit.plugins import ALLOW_VARIABLE, MODULES_VARIABLE, registry

__all__ = ["Codec", "Damage", "bits", "encoded_elsewhere", "normal", "surrounded", "wide"]


def bits(kv: KVTensor) -> bytes:
    """The bytes of a tensor, copied."""
    return bytes(kv.tobytes_view())


def wide(kv: KVTensor) -> npt.NDArray[np.float64]:
    """The values as float64, which holds every value of every KV type."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        return kv.data.astype(np.float64)


def normal(layout: KVLayout, num_tokens: int, seed: int = 0) -> KVTensor:
    """Unit normal KV ``[L, P, T, H, D]``, the same every time."""
    data = np.random.default_rng(seed).standard_normal(layout.shape(num_tokens))
    return KVTensor(layout, data.astype(layout.np_dtype))


def surrounded(payload: bytes, guard: int) -> memoryview:
    """A read-only view of ``payload`` at an odd place in a larger buffer whose other bytes are all ``guard``."""
    fill = bytes([guard])
    return memoryview(fill * 65 + payload + fill * 64)[65 : 65 + len(payload)]


@dataclass(frozen=True)
class Damage:
    """What ``decode`` made of a payload: the bytes of its KV, or None for a BlobError."""

    kv: bytes | None


class Codec:
    """One method; every tensor that it answers has been checked for layout and length.

    Args:
        method: the method.
        record: its record.

    ``refused`` is the reason of the last refusal.
    """

    def __init__(self, method: CompressionMethod, record: CompressionPlugin) -> None:
        self.method, self.record = method, record
        self.refused = ""
        self.lossless = "lossless" in record.capabilities
        self.deterministic = "deterministic" in record.capabilities

    def encode(self, kv: KVTensor) -> bytes | None:
        """The payload, copied; None where the method refuses, giving a reason. ``kv`` must stay as it is."""
        before = bits(kv)
        try:
            payload: Buffer | None = self.method.encode(kv)
        except InvalidRequestError as error:
            payload, self.refused = None, error.message
        assert bits(kv) == before, "encode changed the KV that it was given"
        if payload is None:
            assert self.refused.strip(), "a refusal without a reason"
            assert not self.lossless, f"declared lossless, but refuses {_said(kv)}: {self.refused}"
            return None
        return bytes(payload)

    def decode(self, payload: bytes, kv: KVTensor) -> KVTensor:
        """The tensor of a payload of ``kv``."""
        return self.decode_as(surrounded(payload, 0), kv.layout, kv.num_tokens)

    def decode_as(self, view: memoryview, layout: KVLayout, num_tokens: int) -> KVTensor:
        return self.checked(self.method.decode(view, layout, num_tokens, self.method.version), layout, num_tokens)

    @staticmethod
    def checked(decoded: object, layout: KVLayout, num_tokens: int) -> KVTensor:
        """``decoded``, which must be a tensor of this layout and length."""
        assert isinstance(decoded, KVTensor), f"decode answers a {type(decoded).__name__}, not a KVTensor"
        assert decoded.layout == layout, f"the decoded KV has the layout {decoded.layout}, want {layout}"
        assert decoded.num_tokens == num_tokens, f"{decoded.num_tokens} tokens decoded, want {num_tokens}"
        return decoded


def _said(kv: KVTensor) -> str:
    layout = kv.layout
    special = "" if np.isfinite(wide(kv)).all() else " with NaN or infinities"
    return f"{kv.num_tokens} tokens of {layout.dtype} {layout.shape(kv.num_tokens)}{special}"


# Encodes the tensor of normal() in a fresh interpreter, where hashes of strings differ and nothing was called before.
_ELSEWHERE = """
import sys, msgspec
from lmcache_kit.contracts.records import CompressionPlugin
from lmcache_kit.kv.layout import KVLayout
from lmcache_kit.plugins import registry
from lmcache_kit.testing.suites.compression_codec import normal
name, options, layout, num_tokens = msgspec.json.decode(sys.argv[1])
found = registry()
if name not in found.names("compression"):
    sys.exit(3)
record = found.get(CompressionPlugin, name)
method = record.factory(found.options(record, options))
sys.stdout.buffer.write(method.encode(normal(KVLayout(*layout), num_tokens)))
"""
_NOT_FOUND = 3


def encoded_elsewhere(record: CompressionPlugin, options: Options, layout: KVLayout, num_tokens: int) -> bytes:
    """What a new process makes of :func:`normal`; skips the test where such a process cannot find the plugin."""
    known = registry().find(record.name)
    factory: Any = record.factory
    modules = [name for name in os.environ.get(MODULES_VARIABLE, "").split(",") if name]
    if not any(entry.record.kind == record.kind for entry in known):
        modules.append(getattr(factory, "__module__", ""))
    elif not any(entry.record is record or _same_place(entry.record, record) for entry in known):
        pytest.skip(f"another plugin is installed under the name {record.name!r}")
    arguments = msgspec.json.encode(
        [
            record.name,
            msgspec.to_builtins(options),
            [layout.num_layers, layout.num_kv_heads, layout.head_dim, layout.dtype, layout.planes],
            num_tokens,
        ]
    ).decode()
    environment = {
        **os.environ,
        MODULES_VARIABLE: ",".join(modules),
        "PYTHONHASHSEED": "4711",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    environment.pop(ALLOW_VARIABLE, None)
    done = subprocess.run(  # noqa: S603  (this interpreter and a program of ours)
        [sys.executable, "-c", _ELSEWHERE, arguments], capture_output=True, env=environment, check=False, timeout=100
    )
    if done.returncode == _NOT_FOUND:
        pytest.skip(f"a process of its own does not find {record.name!r}: the plugin is not installed")
    assert done.returncode == 0, f"encoding in a process of its own failed: {done.stderr.decode()[-300:]}"
    return done.stdout


def _same_place(one: Any, other: Any) -> bool:
    """Whether two records were yielded by the same code, perhaps by two calls of a hook."""
    places = [(each.factory.__module__, getattr(each.factory, "__qualname__", "")) for each in (one, other)]
    return places[0] == places[1]
