"""What importing the package costs, which backends there are, and the README's snippet."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import lmcache_kit_kernels
import pytest
from lmcache_kit_kernels import BackendUnavailableError, UnknownBackendError, backends_of
from lmcache_kit_kernels.backends import implementation

README = Path(__file__).parents[1] / "README.md"


def test_numpy_backends_load_neither_jax_nor_lmcache_kit():
    code = (
        "import sys, numpy as np\n"
        "from lmcache_kit_kernels import backends_of, blocks, checks, compaction, packing, threads\n"
        "settings = blocks.Settings('uniform', (127,), ratio=0x4000)\n"
        "coded = blocks.encode(np.ones((1, 2, 3), np.float32), settings)\n"
        "blocks.decode(coded, settings, np.float32), backends_of('blocks')\n"
        "print([name for name in ('jax', 'jaxlib', 'numba', 'torch', 'lmcache_kit') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


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


def test_readme_names_the_backends_that_there_are():
    header, _, *rows = re.findall(r"^\|(.*)\|$", README.read_text(), flags=re.MULTILINE)
    columns = [cell.strip() for cell in header.split("|")][2:]
    listed = {}
    for row in rows:
        operation, _, *marks = (cell.strip() for cell in row.split("|"))
        assert set(marks) <= {"yes", ""}
        named = [name for name, mark in zip(columns, marks, strict=True) if mark]
        listed[operation.strip("`")] = set(named)
    folders = [path.parent.name for path in Path(lmcache_kit_kernels.__file__).parent.glob("*/reference.py")]
    assert listed == {operation: set(backends_of(operation)) for operation in folders}


def test_readme_snippet_runs():
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(snippet, str(README), "exec"), {})
