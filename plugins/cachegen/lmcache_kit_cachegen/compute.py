"""Where the arithmetic runs: the one place that turns the options into a backend of the kernels."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmcache_kit_kernels import backends_of

from lmcache_kit.errors import UnavailableError
from lmcache_kit_cachegen.options import CacheGenOptions

__all__ = ["Compute", "choose", "wants_gpu"]

# Elements that go into one kernel call: enough to occupy the device, few enough for memory.
_CPU_ELEMENTS = 1 << 24
_GPU_ELEMENTS = 1 << 27


@dataclass(frozen=True, slots=True)
class Compute:
    """A backend of the kernels for KV in host memory, the device that KV is coded on, and about how many elements go
    into one call. On a GPU ``backend`` does what the fused kernels are not made for."""

    backend: str
    device: Literal["cpu", "gpu"]
    elements: int

    def applied(self) -> AbstractContextManager[Any]:
        """Within it the kernels run on ``device``: jax by itself takes a GPU wherever there is one."""
        if self.backend != "xla" or self.device != "cpu":
            return nullcontext()
        import jax

        on_cpu: AbstractContextManager[Any] = jax.default_device(jax.local_devices(backend="cpu")[0])
        return on_cpu


def wants_gpu(options: CacheGenOptions) -> bool:
    """Whether the options ask for a GPU; ``auto`` is where the KV is, and the KV of a store is in host memory."""
    return options.device == "gpu" or options.backend == "pallas"


def choose(options: CacheGenOptions) -> Compute:
    """Raises UnavailableError when what the options ask for is not there."""
    gpu = wants_gpu(options)
    backend = "numba" if options.backend in ("auto", "pallas") else options.backend
    if backend not in backends_of("blocks"):
        raise UnavailableError(f"the kernels have no backend {backend!r} for cachegen")
    if gpu or backend == "xla":
        _prepare_jax()
    if gpu:
        import jax

        if jax.default_backend() != "gpu":
            raise UnavailableError(
                f"cachegen was asked to run on a GPU, but jax {jax.__version__} finds none",
                hint="pip install 'lmcache-kit-kernels[gpu]', or leave device and backend at auto",
            )
    elif backend == "xla":
        import jax

        try:
            jax.local_devices(backend="cpu")
        except RuntimeError as error:
            raise UnavailableError(
                f"backend xla of cachegen was to run on the CPU, which jax does not offer: {error}",
                hint="add cpu to JAX_PLATFORMS, or use device: gpu",
            ) from None
    return Compute(backend, "gpu" if gpu else "cpu", _GPU_ELEMENTS if gpu else _CPU_ELEMENTS)


def _prepare_jax() -> None:
    """What must be settled before jax starts: to share the GPU's memory, and to keep compiled programs on disk."""
    # jax would take three quarters of the memory that the engine needs; it heeds this when it first sees the GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    config: Any = jax.config  # jax leaves it without annotations
    if config.jax_compilation_cache_dir is None:
        try:
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:  # a user without a home, as in some containers: programs are compiled in every process
            return
        config.update("jax_compilation_cache_dir", str(Path(home) / "lmcache-kit" / "jax"))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        config.update("jax_persistent_cache_min_entry_size_bytes", -1)
