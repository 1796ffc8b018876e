"""How the loops of the numba backend are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

__all__ = ["compiled", "inlined", "part", "sealed"]

Array = np.ndarray[Any, np.dtype[Any]]
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """``function`` as machine code that runs without the GIL, kept on disk for the next process.

    The cache is renewed when the file that holds ``function`` changes, not when another file does: a compiled function
    may call only ones of its own module. Float operations are neither reordered nor fused.
    """
    try:
        return cast("Function", numba.njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # neither the package's folder nor the user's cache can be written: compile in each process
        return cast("Function", numba.njit(nogil=True, error_model="numpy")(function))


def part(function: Function) -> Function:
    """As :func:`compiled`, for a larger part of such functions, which is compiled once for all of them."""
    return cast("Function", numba.njit(nogil=True, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """As :func:`compiled`, for a part of such functions: it costs no call, and constants passed to it fold."""
    return cast("Function", numba.njit(nogil=True, error_model="numpy", inline="always")(function))


def sealed(array: Array, dtype: Any = None) -> Array:
    """``array`` (cast to ``dtype``) as compiled functions take their inputs: contiguous, aligned and read-only.

    Those three are part of an argument's type: without them each spelling would be a compilation of its own.
    """
    view = np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"]).view()
    view.flags.writeable = False
    return view
