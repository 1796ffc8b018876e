"""What importing the package costs, fixed-width packing, and the README's snippet."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmcache_kit_kernels import BackendUnavailableError, CorruptStreamError, UnknownBackendError, backends_of
from lmcache_kit_kernels.backends import implementation
from lmcache_kit_kernels.packing import pack_bits, packed_size, unpack_bits

README = Path(__file__).parents[1] / "README.md"


def test_numpy_backends_load_neither_jax_nor_lmcache_kit():
    code = (
        "import sys, numpy as np\n"
        "from lmcache_kit_kernels import backends_of, blocks, checks, compaction, packing\n"
        "settings = blocks.Settings('uniform', (127,), ratio=0x4000)\n"
        "coded = blocks.encode(np.ones((1, 2, 3), np.float32), settings)\n"
        "blocks.decode(coded, settings, np.float32), backends_of('blocks')\n"
        "print([name for name in ('jax', 'jaxlib', 'numba', 'torch', 'lmcache_kit') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@given(width=st.integers(1, 8), data=st.data())
def test_packing_is_undone_and_has_one_spelling(width, data):
    values = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), dtype=np.uint8)
    packed = pack_bits(values, width)
    number = sum(int(value) << width * place for place, value in enumerate(values))
    assert packed.tobytes() == number.to_bytes(packed_size(values.size, width), "little")
    assert unpack_bits(packed, values.size, width, limit=2**width).tolist() == values.tolist()


def test_packing_refuses_what_it_did_not_write():
    packed = pack_bits(np.array([3, 7, 1], np.uint8), 3)
    with pytest.raises(CorruptStreamError, match="below 7"):
        unpack_bits(packed, 3, 3, limit=7)
    with pytest.raises(CorruptStreamError, match="padding"):
        unpack_bits(packed | np.array([0, 2], np.uint8), 3, 3, limit=8)
    with pytest.raises(CorruptStreamError, match="do not hold"):
        unpack_bits(packed, 7, 3, limit=8)


@pytest.mark.parametrize("operation", ["blocks", "compaction", "quantize", "rans", "statistics", "uniform"])
def test_operations_have_a_reference(operation):
    assert backends_of(operation)[:2] == ("numpy", "xla")


@pytest.mark.parametrize("name", ["transpose", "checks", "errors"])
def test_what_is_no_operation(name):
    with pytest.raises(UnknownBackendError, match="no operation"):
        backends_of(name)


@pytest.mark.parametrize(("backend", "package"), [("xla", "jax"), ("numba", "numba")])
def test_a_backend_whose_package_is_missing_says_so(monkeypatch, backend, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(BackendUnavailableError, match=f"pip install {package}"):
        implementation.__wrapped__("blocks", backend)
    with pytest.raises(UnknownBackendError, match="it has numpy, xla"):
        implementation("rans", "cuda")


def test_readme_snippet_runs():
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(snippet, str(README), "exec"), {})
