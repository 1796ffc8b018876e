"""What the property tests tried in a deep run, and which bugs they found.

Runs the property tests and the conformance suites again and again with new random choices, as `make test-deep` does,
and writes the counts of cases and steps per test (JSON). With --page FILE the page with their table is written from the
counts and from bugs.json beside it: every bug that a property test, a conformance suite or a fuzzer found in this
repository, with the test that keeps it from coming back.

    python benchmarks/reliability.py --minutes 30 --output docs/benchmarks/reliability/deep.json \\
        --page docs/benchmarks/reliability/README.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from facts import hardware, load_average, versions

__all__ = ["deep_run", "page"]

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = ("tests/properties", "tests/conformance")
BROKEN_ON_PURPOSE = ("tests/conformance/test_mutants.py", "tests/conformance/test_broken_cores.py")
LEAD = """# Reliability: what was tried, and what it found

State machines and other property tests compare the project with independent oracles: an instance with dictionaries of
bytes, the controller with prefix tries, jobs with what became of them, simulated fleets with what must hold in any
fleet. An ordinary test run gives each a few dozen cases; `make test-deep` goes on with new random choices for half an
hour (`LMCACHE_KIT_DEEP_MINUTES` sets another time) and writes what was tried to `out/deep.json`. This page shows a
recorded run, [deep.json](deep.json), made by

    python benchmarks/reliability.py --minutes {minutes:g} --processes {processes} \\
        --output docs/benchmarks/reliability/deep.json --page docs/benchmarks/reliability/README.md

Plugins' suites run once in it, however long it is, with twice as many examples as usual.
"""


def deep_run(minutes: float, processes: int, tests: Sequence[str] = TESTS) -> dict[str, Any]:
    """Run the property tests for about ``minutes``; the counts that they wrote, with the facts of the machine.

    Raises RuntimeError when pytest wrote none.
    """
    before, started = load_average(), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "deep.json")
        command = [sys.executable, "-m", "pytest", "--quiet", "--hypothesis-profile", "deep", "--timeout", "0"]
        command += ["--deep-minutes", f"{minutes:g}", "--deep-counts", str(counts), *tests]
        command += [f"--ignore={path}" for path in BROKEN_ON_PURPOSE]
        if processes > 1:
            command += ["--numprocesses", str(processes), "--dist", "worksteal"]
        done = subprocess.run(command, cwd=REPOSITORY, check=False)
        if not counts.exists():
            raise RuntimeError(f"pytest wrote no counts and ended with status {done.returncode}")
        counted = json.loads(counts.read_text())
    return {
        "schema_version": 1,
        "benchmark": "reliability",
        "started": started,
        "hardware": hardware(),
        "versions": versions(["hypothesis", "pytest"]),
        "load_average": {"before": before, "after": load_average()},
        "parameters": {"minutes": minutes, "processes": processes, "tests": list(tests)},
        "minutes": counted["minutes"],
        "totals": counted["totals"],
        "tests": counted["tests"],
    }


def page(run: Mapping[str, Any], bugs: Sequence[Mapping[str, str]]) -> str:
    """The page in Markdown: totals, each state machine, the other property tests by file, and the bugs."""
    totals, when = run["totals"], run["started"][:10]
    machines = [test for test in run["tests"] if test["steps"]]
    files: dict[str, list[Mapping[str, Any]]] = {}
    for test in run["tests"]:
        if not test["steps"]:
            files.setdefault(test["test"].partition("::")[0], []).append(test)
    lines = [
        LEAD.format(**run["parameters"]),
        f"Run of {when}: {run['minutes']:g} minutes in all, {run['parameters']['processes']} process(es), load average"
        f" before {run['load_average']['before']}, {run['hardware']['cpu']}, Python {run['versions']['python']},"
        f" hypothesis {run['versions']['hypothesis']}.",
        f"{totals['tests']} property tests tried {totals['cases']:,} cases; the state machines among them took"
        f" {totals['steps']:,} steps. {totals['failures']} tests failed.",
        "",
        "## State machines",
        "",
        "| state machine | cases | steps | failures |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| `{test['test']}` | {test['cases']:,} | {test['steps']:,} | {_failed(test)} |"
            for test in sorted(machines, key=lambda test: -test["steps"])
        ),
        "",
        "## Other property tests",
        "",
        "| file | tests | cases | failures |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| `{file}` | {len(tests)} | {sum(test['cases'] for test in tests):,} | {sum(map(_failed, tests))} |"
            for file, tests in sorted(files.items())
        ),
        "",
        "## Bugs found",
        "",
        *(["None so far."] if not bugs else []),
        *(["| bug | found by | regression test |", "| --- | --- | --- |"] if bugs else []),
        *(f"| {bug['bug']} | {bug['found_by']} | `{bug['test']}` |" for bug in bugs),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _failed(test: Mapping[str, Any]) -> int:
    return int(test["outcome"] == "failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="about how long; default: 30; 0: only the page")
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="counts of the run (JSON)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page from the counts and bugs.json")
    parser.add_argument("tests", nargs="*", default=list(TESTS), help=f"default: {' '.join(TESTS)}")
    arguments = parser.parse_args()
    if arguments.minutes > 0:
        run = deep_run(arguments.minutes, arguments.processes, arguments.tests)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(run, indent=1) + "\n")
    else:
        run = json.loads(arguments.output.read_text())
    if arguments.page is not None:
        bugs = json.loads(arguments.page.with_name("bugs.json").read_text())
        arguments.page.write_text(page(run, bugs))
    totals = run["totals"]
    print(f"{totals['cases']:,} cases, {totals['steps']:,} steps, {totals['failures']} failures")
    sys.exit(1 if totals["failures"] else 0)


if __name__ == "__main__":
    main()
