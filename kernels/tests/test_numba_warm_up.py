"""Compiling ahead: afterwards nothing is left to be compiled, whatever is asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from lmcache_kit_kernels import warm_up

AFTERWARDS = """
from lmcache_kit_kernels import warm_up
assert warm_up.main() == 0
from numba.core import event
import ml_dtypes
import numpy as np
from lmcache_kit_kernels.blocks import Settings, decode, dequantize, encode, quantize
from lmcache_kit_kernels.checks import weighted_sum
from lmcache_kit_kernels.packing import pack_rows, unpack_rows
with event.install_recorder("numba:compile") as recorder:
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float32):
        x = np.random.default_rng(0).standard_normal((3, 6, 24)).astype(dtype)
        for chosen in (
            Settings("uniform", (127,) * 3, 0x4000),
            Settings("uniform", (127,) * 3, 0x4000, (0x3F80,) * 3, 4, 2, anchor_group=2, fold=4, group=5),
            Settings("lmcache", (31, 15, 15)),
            Settings("lmcache", (15, 15, 31), anchor_group=3, fold=2),
        ):
            coded = encode(x, chosen, backend="numba")
            decode(coded, chosen, dtype, backend="numba")
            dequantize(quantize(x, chosen, backend="numba"), chosen, dtype, backend="numba")
    for width in range(1, 9):
        values = np.ones((2, 11), np.uint8)
        weighted_sum(pack_rows(values, width, backend="numba").reshape(-1)[:2].view(np.uint16), 3, backend="numba")
        unpack_rows(pack_rows(values, width, backend="numba"), 11, width, backend="numba")
print([entry.data["dispatcher"].py_func.__name__ for _, entry in recorder.buffer])
"""


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="the numba backend needs numba")
def test_nothing_is_compiled_afterwards():
    result = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    *told, left = result.stdout.splitlines()
    assert left == "[]"
    # Whatever ran before this test may have compiled everything.
    assert told == ["nothing to compile: all is kept from before"] or told[0].startswith("compiled numba_")


def test_without_numba_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert warm_up.main() == 1
    assert "pip install numba" in capsys.readouterr().err
