"""The direction of imports that DESIGN promises, and what must not be imported at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "lmcache_kit"
PARTS = {"core", "store", "config", "peer", "worker", "http"}


def imported_at_run_time(path: Path) -> set[str]:
    """Modules that a file imports anywhere except under ``if TYPE_CHECKING``."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def offenders(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted((CORE / folder).rglob("*.py"))
        for module in sorted(imported_at_run_time(path))
        if any(module == name or module.startswith(name + ".") for name in forbidden)
    ]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("", ("torch", "jax", "transformers", "ray", "vllm", "lmcache", "pickle")),
        ("", ("lmcache_kit_cachegen", "lmcache_kit_transformers", "lmcache_kit_valkey", "lmcache_kit_kernels")),
        ("controller", ("lmcache_kit.instance",)),
        ("instance", ("lmcache_kit.controller",)),
        ("kv", tuple(f"lmcache_kit.{name}" for name in ("contracts", "controller", "instance", "builtin", "plugins"))),
        (
            "contracts",
            tuple(f"lmcache_kit.{name}" for name in ("controller", "instance", "builtin", "plugins", "live", "client")),
        ),
        ("builtin", ("lmcache_kit.controller", "lmcache_kit.instance")),
    ],
)
def test_nothing_imports_what_it_must_not(folder: str, forbidden: tuple[str, ...]) -> None:
    assert offenders(folder, forbidden) == []


def test_kernels_know_nothing_of_the_core() -> None:
    files = list((ROOT / "kernels").rglob("*.py"))
    assert files
    for path in files:
        assert not any(name.split(".")[0] == "lmcache_kit" for name in imported_at_run_time(path)), path


@pytest.mark.parametrize("module", ["registry", "index", "operations", "core"])
def test_the_controller_core_does_no_io(module: str) -> None:
    found = imported_at_run_time(CORE / "controller" / f"{module}.py")
    assert not found & {"asyncio", "zmq", "time", "threading", "socket", "starlette", "random"}


def test_the_instance_core_does_no_io() -> None:
    io = ("asyncio", "zmq", "time", "threading", "socket", "concurrent", "random", "os", "pathlib")
    assert offenders("instance/core", io) == []
    assert offenders("instance/core", tuple(f"lmcache_kit.instance.{part}" for part in PARTS - {"core"})) == []


def test_the_parts_of_an_instance_stand_in_one_order() -> None:
    """The core knows nobody, the store only the core, and the servers do not know each other."""
    for part in ("store", "peer", "worker", "http"):
        allowed = {"store": {"core"}}.get(part, {"core", "store"})
        forbidden = tuple(f"lmcache_kit.instance.{other}" for other in PARTS - allowed - {part, "config"})
        assert offenders(f"instance/{part}", forbidden) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from lmcache_kit.cli import main; main(['--help'])",
        "from lmcache_kit.cli import main; main(['plugins', 'list'])",
        "import lmcache_kit.controller.server",
    ],
)
def test_light_commands_import_no_heavy_package(statement: str) -> None:
    code = (
        f"import sys\n{statement}\n"
        "heavy = {'torch', 'jax', 'transformers', 'ray', 'pandas', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
