"""From template to green conformance run: seconds of each of the three commands, for every kind of plugin.

The commands are those that ``lmcache-kit plugins new`` names: new, ``pip install -e``, ``pytest``; after them the
scenario that comes with the plugin, which measures something. They run in a new environment that takes third-party
packages from the one this runs in, so nothing is downloaded and the figures are machine time, not the network's.
Ends with 1 when the median of the three together is above a minute for some kind.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import LEAST_CALLS, Report, argument_parser, table

from lmcache_kit.contracts.records import PLUGIN_KINDS

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 60.0
STEPS = ("new_seconds", "install_seconds", "tests_seconds", "to_green_seconds", "scenario_seconds")


class Environment:
    """An environment whose packages are those of the running one, the repository's own included, and what is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], cwd=folder, check=True)
        [packages] = (folder / "env" / "lib").glob("python*/site-packages")
        paths = [ROOT, *(path for path in map(Path, sys.path) if path.name == "site-packages")]
        (packages / "shared.pth").write_text("".join(f"{path}\n" for path in paths))
        self.python = str(folder / "env" / "bin" / "python")

    def timed(self, *command: str, plugin: str) -> tuple[float, str]:
        """Seconds of a command, and what it prints; a command that fails ends the benchmark with its output."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LMCACHE_"))}
        # Entry points of plugins that are installed in the running environment, but not in this one, are left out.
        environment["LMCACHE_KIT_PLUGINS"] = plugin
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
        return seconds, done.stdout

    def round(self, kind: str) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds of each step, and how many tests passed and were skipped."""
        name, plugin = f"new-{kind}", f"new_{kind}"
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--quiet", "--disable-pip-version-check"]
        new, _ = self.timed(self.python, "-m", "lmcache_kit", "plugins", "new", name, "--kind", kind, plugin=plugin)
        options = ("--no-build-isolation", "--no-index", "-e", f"./{name}[test]")
        install, _ = self.timed(*pip, "install", *options, plugin=plugin)
        tests, shown = self.timed(self.python, "-m", "pytest", "-q", name, plugin=plugin)
        scenario, _ = self.timed(self.python, "-m", "lmcache_kit", "run", f"{name}/scenario.yaml", plugin=plugin)
        self.timed(*pip, "uninstall", "--yes", name, plugin=plugin)
        shutil.rmtree(self.folder / name)
        counted = {outcome: int(number) for number, outcome in re.findall(r"(\d+) (passed|skipped)", shown)}
        return dict(zip(STEPS, (new, install, tests, new + install + tests, scenario), strict=True)), counted


def run_kind(report: Report, environment: Environment, kind: str, rounds: int) -> dict[str, Any]:
    """One result: every step of every round."""
    samples: dict[str, list[float]] = {step: [] for step in STEPS}
    counted: dict[str, int] = {}
    for _ in range(rounds):
        seconds, counted = environment.round(kind)
        for step, taken in seconds.items():
            samples[step].append(taken)
    return report.add(kind, samples, tests_passed=counted.get("passed", 0), tests_skipped=counted.get("skipped", 0))


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=LEAST_CALLS, help=f"of each kind; default: {LEAST_CALLS}")
    parser.add_argument("--kind", action="append", choices=list(PLUGIN_KINDS), help="only these; default: all")
    arguments = parser.parse_args()
    kinds, rounds = arguments.kind or list(PLUGIN_KINDS), 1 if arguments.quick else arguments.rounds
    report = Report(
        "new_plugin", arguments, {"rounds": rounds, "limit_seconds": LIMIT_SECONDS}, ("pytest", "hypothesis", "pip")
    )
    with tempfile.TemporaryDirectory(prefix="new-plugin-") as folder:
        environment = Environment(Path(folder))
        results = [run_kind(report, environment, kind, rounds) for kind in kinds]
    rows = [
        [result["name"], *(result["metrics"][step]["median"] for step in STEPS), result["tests_passed"]]
        for result in results
    ]
    print(table(["kind", "new s", "install s", "tests s", "to green s", "scenario s", "tests"], rows))
    report.write()
    return int(any(result["metrics"]["to_green_seconds"]["median"] > LIMIT_SECONDS for result in results))


if __name__ == "__main__":
    sys.exit(main())
