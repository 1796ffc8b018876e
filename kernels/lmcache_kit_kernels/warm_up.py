"""Compile the loops of backend ``numba`` ahead of their first use: ``python -m lmcache_kit_kernels.warm_up``.

Machine code is kept on disk and found by later processes: beside the modules, or in the user's cache folder where that
cannot be written. It is made anew when a module changes or the processor is another.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

import numpy as np

from lmcache_kit_kernels import blocks
from lmcache_kit_kernels.checks import word_sums
from lmcache_kit_kernels.packing import pack_rows, unpack_rows

__all__ = ["compile_all", "main"]

_SHAPE = (1, 8, 64)


def compile_all() -> None:
    """Run everything that is compiled, on a little data."""
    values = np.linspace(-1, 1, num=np.prod(_SHAPE), dtype=np.float32).reshape(_SHAPE)
    for settings in (
        blocks.Settings("uniform", (127,), ratio=0x4000, refined_tokens=1, refine_bits=2),
        blocks.Settings("lmcache", (31,)),
    ):
        coded = blocks.encode(values, settings, backend="numba")
        blocks.decode(coded, settings, values.dtype, backend="numba")
    small = np.arange(20, dtype=np.uint8).reshape(1, -1)
    unpack_rows(pack_rows(small, 5, backend="numba"), small.size, 5, backend="numba")
    word_sums(np.zeros(1, np.uint16), backend="numba")


def main() -> int:
    """:func:`compile_all`, telling of each function that had to be compiled; the exit status, 1 without numba."""
    if importlib.util.find_spec("numba") is None:
        print("backend numba needs numba: pip install numba", file=sys.stderr)
        return 1
    from numba.core import event

    class Teller(event.Listener):
        """Prints what is compiled, but for the parts of others."""

        def __init__(self) -> None:
            self.begun: list[float] = []
            self.places: set[str | None] = set()

        def on_start(self, event: Any) -> None:
            self.begun.append(time.perf_counter())

        def on_end(self, event: Any) -> None:
            begin = self.begun.pop()
            if not self.begun:
                dispatcher = event.data["dispatcher"]
                self.places.add(getattr(dispatcher.stats, "cache_path", None))
                name = f"{dispatcher.py_func.__module__.rpartition('.')[2]}.{dispatcher.py_func.__name__}"
                print(f"compiled {name} in {time.perf_counter() - begin:.1f} s", flush=True)

    teller = Teller()
    start = time.perf_counter()
    with event.install_listener("numba:compile", teller):
        compile_all()
    if not teller.places:
        print("nothing to compile: all is kept from before")
    elif None in teller.places:
        print("there is no folder to keep it in: every process compiles again (NUMBA_CACHE_DIR names one)")
    else:
        print(f"{time.perf_counter() - start:.1f} s in all, kept in {', '.join(sorted(map(str, teller.places)))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
