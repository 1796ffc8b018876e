"""From template to green conformance run: seconds of each of the three commands, for every kind of plugin.

    python benchmarks/new_plugin.py --output docs/benchmarks/new_plugin.json

The commands are those that ``lmcache-kit plugins new`` names: new, ``pip install -e``, ``pytest``; after them the
scenario that comes with the plugin, which measures something. They run in a new environment that takes third-party
packages from the one this runs in, so nothing is downloaded and the figures are machine time, not the network's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lmcache_kit
from lmcache_kit.contracts.records import PLUGIN_KINDS

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 60.0


def main() -> int:
    """Measure every kind; 1 when one takes longer than a minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--kinds", nargs="*", default=list(PLUGIN_KINDS), choices=list(PLUGIN_KINDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="new-plugin-") as folder:
        environment = Environment(Path(folder))
        results = [measured(environment, kind) for kind in arguments.kinds]
    report = {
        "lmcache_kit": lmcache_kit.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "limit_seconds": LIMIT_SECONDS,
        "kinds": results,
    }
    text = json.dumps(report, indent=2) + "\n"
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)
    print(text, end="")
    return int(any(result["to_green_seconds"] > LIMIT_SECONDS for result in results))


class Environment:
    """An environment whose packages are those of the running one, the repository's own included, and what is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], cwd=folder, check=True)
        [packages] = (folder / "env" / "lib").glob("python*/site-packages")
        paths = [ROOT, *(path for path in map(Path, sys.path) if path.name == "site-packages")]
        (packages / "shared.pth").write_text("".join(f"{path}\n" for path in paths))
        self._bin = folder / "env" / "bin"

    def timed(self, *command: str) -> tuple[float, str]:
        """Seconds of a command, and what it prints. Raises CalledProcessError with its output."""
        # Entry points of plugins that are installed in the running environment, but not in this one, are left out.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LMCACHE_"))}
        kind = self.folder.joinpath("kind").read_text()
        environment |= {"LMCACHE_KIT_PLUGINS": f"new_{kind}", "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}"}
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
        return round(seconds, 2), done.stdout


def measured(environment: Environment, kind: str) -> dict[str, Any]:
    """The three commands of one kind, and its scenario."""
    name = f"new-{kind}"
    environment.folder.joinpath("kind").write_text(kind)
    python = str(environment.folder / "env" / "bin" / "python")
    new, _ = environment.timed(python, "-m", "lmcache_kit", "plugins", "new", name, "--kind", kind)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-build-isolation", "--no-index"]
    install, _ = environment.timed(*pip, "--disable-pip-version-check", "-e", f"./{name}[test]")
    tests, shown = environment.timed(python, "-m", "pytest", "-q", name)
    scenario, _ = environment.timed(python, "-m", "lmcache_kit", "run", f"{name}/scenario.yaml")
    counted = dict(re.findall(r"(\d+) (passed|skipped)", shown.splitlines()[-1]))
    return {
        "kind": kind,
        "commands": 3,
        "new_seconds": new,
        "install_seconds": install,
        "tests_seconds": tests,
        "to_green_seconds": round(new + install + tests, 2),
        "scenario_seconds": scenario,
        **{outcome: int(number) for number, outcome in counted.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
