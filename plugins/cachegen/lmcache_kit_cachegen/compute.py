"""Where the arithmetic runs: the one place that turns the options into a backend of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmcache_kit_kernels import backends_of

from lmcache_kit.errors import UnavailableError
from lmcache_kit_cachegen.options import CacheGenOptions

__all__ = ["Compute", "choose"]

# Elements that go into one kernel call: enough to occupy the device, few enough for memory.
_CPU_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class Compute:
    """A backend of the kernels, the device it runs on, and about how many elements go into one call of it."""

    backend: str
    device: Literal["cpu", "gpu"]
    elements: int


def choose(options: CacheGenOptions) -> Compute:
    """Raises UnavailableError when what the options ask for is not there. KV handed over as numpy arrays is on the CPU,
    so device ``auto`` is the CPU."""
    if options.device == "gpu" or options.backend == "pallas":
        raise UnavailableError("cachegen has no GPU backend yet", hint="leave device and backend at auto")
    backend = "numba" if options.backend == "auto" else options.backend
    if backend not in backends_of("blocks"):
        raise UnavailableError(f"the kernels have no backend {backend!r} for cachegen")
    return Compute(backend, "cpu", _CPU_ELEMENTS)
