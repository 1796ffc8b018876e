"""Broken plugins as a user has them: distributions with entry points, and the command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECORD = """
from lmcache_kit import hookimpl
from lmcache_kit.contracts import CompressionPlugin

@hookimpl
def lmcache_kit_compression_methods():
    yield CompressionPlugin(name={name!r}, summary="made up", factory=lambda options: None{more})
"""
SOURCES = {
    "raises": "raise RuntimeError('several\\nlines')",
    "ends": "import sys; sys.exit(0)",
    "lacks": "import a_package_that_nobody_has",
    "unreadable": "def broken(:",
    "wrong_hook": RECORD.replace("methods():", "methods(config):").format(name="a", more=""),
    "wrong_factory": RECORD.replace("lambda options:", "lambda:").format(name="b", more=""),
    "twice": RECORD.format(name="zstd", more=""),
    "old": RECORD.format(name="c", more=", api_version=0"),
    "new": RECORD.format(name="d", more=", api_version=99"),
    "half": RECORD.format(name="e", more="") + "    raise OSError('half way')\n",
    "nothing": RECORD.replace("yield", "").format(name="f", more=""),
    "good": RECORD.format(name="good", more=""),
}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages, with one distribution per source."""
    folder = tmp_path_factory.mktemp("site")
    for name, source in SOURCES.items():
        (folder / f"made_up_{name}.py").write_text(source)
        info = folder / f"made_up_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lmcache_kit]\n{name} = made_up_{name}\n")
    info = folder / "made_up_gone-1.0.dist-info"  # its files were deleted by hand
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up-gone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lmcache_kit]\ngone = made_up_gone\n")
    return folder


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    def run(*arguments: str, allow: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LMCACHE_")}
        environment["PYTHONPATH"] = str(site)
        if allow is not None:
            environment["LMCACHE_KIT_PLUGINS"] = allow
        return subprocess.run(
            [sys.executable, "-m", "lmcache_kit", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


def test_the_list_shows_every_broken_one_with_its_reason_and_all_others(run: Run) -> None:
    done = run("plugins", "list", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    names = {(each["kind"], each["name"]) for each in found["plugins"]}
    assert {("compression", "good"), ("compression", "zstd"), ("eviction", "lru")} <= names
    assert {each["distribution"] for each in found["plugins"] if each["name"] == "zstd"} == {"lmcache-kit"}
    reasons = {each["source"].partition(" ")[0]: each["reason"] for each in found["broken"]}
    expected = {
        "raises": "its import failed: RuntimeError: several lines (update or uninstall made-up-raises)",
        "ends": "its import failed: SystemExit: 0: it wanted to end the program",
        "lacks": "pip install a_package_that_nobody_has",
        "unreadable": "its import failed: SyntaxError: ",
        "wrong_hook": "its hook lmcache_kit_compression_methods wants the argument 'config'",
        "wrong_factory": "the factory of compression 'b' takes no argument for 'options'",
        "twice": "compression 'zstd' is already registered by lmcache_kit.builtin",
        "old": "compression 'c' was written for plugin API 0",
        "new": "compression 'd' was written for plugin API 99, this lmcache-kit has 1 (upgrade lmcache-kit)",
        "half": "its hook lmcache_kit_compression_methods raised OSError: half way",
        "nothing": "its hook lmcache_kit_compression_methods returned nothing",
        "gone": "install made-up-gone again",
    }
    assert {name: text in reasons.get(name, "") for name, text in expected.items()} == dict.fromkeys(expected, True), (
        reasons
    )
    assert all("\n" not in each for each in reasons.values())


def test_one_that_is_left_out_is_not_even_imported(run: Run) -> None:
    done = run("plugins", "list", allow="good")
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout
    assert "made_up" not in done.stderr


@pytest.mark.parametrize(("name", "entry", "words"), [("raises", "raises", "several lines"), ("d", "new", "API 99")])
def test_show_names_the_reason(run: Run, name: str, entry: str, words: str) -> None:
    done = run("plugins", "show", name, allow=entry)
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in error
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("method", "entry", "words"), [("raises", "raises", "several lines"), ("d", "new", "API 99")])
def test_a_scenario_that_uses_one_is_refused_with_the_reason(run: Run, method: str, entry: str, words: str) -> None:
    done = run("run", "synthetic", "--set", f"workloads.compress.method={method}", allow=entry)
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (hint,) = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    assert method in error
    assert words in hint
    assert f"made_up_{entry}" in hint
    assert done.stdout == ""


def test_a_scenario_that_does_not_use_it_runs(run: Run) -> None:
    done = run("scenario", "show", "synthetic", allow="raises,ends,half,good")
    assert done.returncode == 0, done.stderr
    done = run("run", "fleet", "--clock", "virtual", "--set", "workloads.0.requests=20", allow="raises,ends,half")
    assert done.returncode in (0, 1), done.stderr  # 1: so few requests miss what the scenario expects
    assert "Traceback" not in done.stderr
    assert "several lines" in done.stderr
