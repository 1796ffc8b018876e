"""`plugins new` from the wheel: the distribution of every kind builds, installs into an empty environment beside our
wheels, is found by its entry point, keeps its contract and works in a fleet.

The environment has the third-party packages that are installed here and nothing of ours but what is installed into it:
no editable checkout, no pytest plugins that an author need not have. No network is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmcache_kit.contracts import PLUGIN_KINDS

pytest.importorskip("pip", reason="an environment is filled with pip")

ROOT = Path(__file__).parents[3]
LOCATION = "MyStorageBackend"
SUITES = {"storage", "compression", "transport", "engine", "eviction", "placement", "trace"}
FEW_EXAMPLES = """
from hypothesis import settings

settings.register_profile("few", max_examples=10)
settings.load_profile("few")
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder in which commands run."""

    folder: Path

    def run(self, *command: str, status: int = 0) -> str:
        """What a command of the environment prints."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LMCACHE_", "PYTHON"))}
        done = subprocess.run(
            [str(self.folder / "env" / "bin" / command[0]), *command[1:]],
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": str(self.folder / "more"), "HYPOTHESIS_STORAGE_DIRECTORY": "examples"},
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == status, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def pip(self, *arguments: str) -> None:
        """pip of this interpreter, working on the environment, without a package index."""
        command = [sys.executable, "-m", "pip", "--python", str(self.folder / "env" / "bin" / "python"), *arguments]
        command += ["--no-index", "--find-links", "wheels", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def environment(build: Any, third_party: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With the core, ``echo`` and a new plugin of each kind installed from their wheels."""
    folder = tmp_path_factory.mktemp("author")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], cwd=folder, check=True, timeout=100)
    [packages] = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "third-party.pth").write_text(f"{third_party}\n")
    (folder / "more").mkdir()
    (folder / "more" / "few_examples.py").write_text(FEW_EXAMPLES)
    made = Environment(folder)
    for number, project in enumerate((ROOT, ROOT / "plugins" / "echo")):
        wheel = build(project, folder / f"wheel-{number}")
        (folder / "wheels").mkdir(exist_ok=True)
        shutil.copy(wheel, folder / "wheels")
    made.pip("install", "lmcache-kit[testing]", "lmcache-kit-echo")
    new = f"""
from lmcache_kit.cli import main
for kind in {list(PLUGIN_KINDS)}:
    assert main(["plugins", "new", f"my-{{kind}}", "--kind", kind]) == 0
"""
    made.run("python", "-c", new)
    projects = [f"./my-{kind}" for kind in PLUGIN_KINDS]
    made.pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", *projects)
    made.pip("install", *(f"my-{kind}[test]" for kind in PLUGIN_KINDS))
    return made


def test_nothing_of_ours_comes_from_elsewhere(environment: Environment) -> None:
    packages = ["lmcache_kit", "lmcache_kit_echo", *(f"my_{kind}" for kind in PLUGIN_KINDS)]
    places = environment.run(
        "python", "-c", f"import {', '.join(packages)}\nfor m in {packages}: print(eval(m).__file__)"
    )
    assert len(places.splitlines()) == len(packages)
    for place in places.splitlines():
        assert "site-packages" in place
        assert place.startswith(str(environment.folder / "env"))


def test_they_are_found_by_their_entry_points(environment: Environment) -> None:
    listed = json.loads(environment.run("lmcache-kit", "plugins", "list", "--format", "json"))
    assert listed["broken"] == []
    foreign = {
        (each["kind"], each["name"]): (each["distribution"], each["source"])
        for each in listed["plugins"]
        if each["distribution"] != "lmcache-kit"
    }
    expected = {(kind, f"my_{kind}"): (f"my-{kind}", f"my_{kind} (my_{kind}.plugin)") for kind in PLUGIN_KINDS}
    assert foreign == {**expected, ("compression", "echo"): ("lmcache-kit-echo", "echo (lmcache_kit_echo)")}


def test_a_name_that_is_installed_is_refused(environment: Environment) -> None:
    environment.run("lmcache-kit", "plugins", "new", "my-storage", "--kind", "storage", "--directory", "x", status=1)
    assert not (environment.folder / "x").exists()


def test_they_keep_their_contracts(environment: Environment) -> None:
    folders = [f"my-{kind}/tests" for kind in PLUGIN_KINDS if kind != "workload"]  # which runs a fleet of its own
    shutil.copytree(ROOT / "plugins" / "echo" / "tests", environment.folder / "echo-tests")
    shown = environment.run(
        *("python", "-m", "pytest", "-p", "few_examples", "-p", "no:cacheprovider", "--import-mode=importlib"),
        *("-W", "error", "-v", "--tb=short", *folders, "echo-tests"),
    )
    for kind in SUITES:
        class_name = f"TestMy{kind.capitalize()}"
        assert re.search(rf"::{class_name}::test_\w+ PASSED", shown), kind
    assert re.search(r"::TestEcho::test_\w+ PASSED", shown)
    assert " failed" not in shown.splitlines()[-1]


def fleet(folder: Path) -> dict[str, Any]:
    """A scenario made of the templates' own: every plugin is in it, with the options that its scenario gives it."""
    own = {kind: yaml.safe_load((folder / f"my-{kind}" / "scenario.yaml").read_text()) for kind in PLUGIN_KINDS}
    defaults = {kind: scenario["instance_defaults"] for kind, scenario in own.items()}
    trace = own["trace"]["workloads"][0]
    trace["trace"]["path"] = "my-trace/requests.jsonl"
    return {
        "name": "all",
        "launcher": own["launcher"]["launcher"],
        "reporters": own["reporter"]["reporters"],
        "instance_defaults": {
            "engine": defaults["engine"]["engine"],
            "chunk_size": 16,
            "methods": {**defaults["compression"]["methods"], "echo": {"level": 2}},
            "placement": {**defaults["placement"]["placement"], "options": {"large_bytes": 1_000_000}},
            "transport": defaults["transport"]["transport"],
            "tiers": [{**defaults["eviction"]["tiers"][0], "capacity": "32KiB"}, defaults["storage"]["tiers"][1]],
        },
        "instances": [{"id": "a"}, {"id": "b"}],
        "workloads": [
            {**own["engine"]["workloads"][0], "instances": ["a"]},
            {"name": "compress", "kind": "compress", "of": "serve", "method": "my_compression"},
            {"name": "echo", "kind": "compress", "of": "serve", "method": "echo"},
            {
                "name": "move",
                "kind": "move",
                "of": "serve",
                "from": {"instance": "a", "location": "LocalCPUBackend"},
                "to": {"instance": "b", "location": LOCATION},
                "copy": True,
            },
            {"name": "read_back", "kind": "completions", "compare_to": "serve", "instances": ["a"], "max_tokens": 16},
            {**own["workload"]["workloads"][0], "times": 2},
            trace,
        ],
        "expect": {
            "serve.counts.requests": 2,
            "read_back.text_equal": True,
            "read_back.cached_tokens_by_location.MyStorageBackend": "> 0",
            "compress.counts.jobs": "> 0",
            "move.verified": True,
            "repeat.cached_tokens": "> 0",
            "replay.counts.failed": 0,
        },
    }


def test_one_fleet_uses_them_all(environment: Environment) -> None:
    (environment.folder / "all.yaml").write_text(yaml.safe_dump(fleet(environment.folder)))
    report = json.loads(environment.run("lmcache-kit", "run", "all.yaml", "--format", "json", "--output-dir", "out"))
    assert report["status"] == "passed"
    used = {(each["kind"], each["name"]) for each in report["plugins"]}
    assert used >= {(kind, f"my_{kind}") for kind in PLUGIN_KINDS} | {("compression", "echo")}
    results = {each["name"]: each for each in report["results"]}
    assert results["repeat"]["kind"] == "my_workload"
    assert results["replay"]["counts"]["requests"] == 4
    assert "| repeat | my_workload |" in (environment.folder / "out" / "results.md").read_text()


def test_their_own_scenarios_are_valid(environment: Environment) -> None:
    code = f"""
from lmcache_kit.cli import main
for kind in {list(PLUGIN_KINDS)}:
    assert main(["scenario", "validate", f"my-{{kind}}/scenario.yaml"]) == 0, kind
"""
    shown = environment.run("python", "-c", code)
    assert len(shown.splitlines()) == len(PLUGIN_KINDS)


def test_the_scenario_of_a_new_codec_measures_it(environment: Environment) -> None:
    """The last of the commands that `plugins new` names, as it is printed."""
    report = json.loads(environment.run("lmcache-kit", "run", "my-compression/scenario.yaml", "--format", "json"))
    assert report["status"] == "passed"
    [compress] = [each for each in report["results"] if each["kind"] == "compress"]
    assert compress["ratio"] > 1
