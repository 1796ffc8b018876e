"""How far virtual runs are from wall runs: costs are fitted to one scenario, and judged by others.

All wall runs come first, one after another: the calibration's, then each scenario's. Then costs are fitted to the
calibration's run alone, every scenario is played with them on the virtual clock, and its requests are held against
those of its wall run, matched by workload and position. Errors are in percent of the wall run's value:

- MAPE: mean over requests of how far each one's time to first token is off;
- p50, p90, p99: of that percentile of all requests of the scenario;
- points: of the token hit rate, a difference.

Let the machine do nothing else meanwhile. `others` says how many cores other programs took during each wall run (of a
second one, during that); --quiet repeats those that were disturbed, and the file says how often. A second wall run of
each scenario, with --again, says how far two wall runs are apart.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Report, argument_parser, table

from lmcache_kit.calibration import calibrate, figures, judge, judged, request_pairs
from lmcache_kit.live import Run
from lmcache_kit.plugins import registry
from lmcache_kit.scenario import find_scenario, load_scenario

FOLDER = Path(__file__).parent / "fidelity"
CALIBRATION = "calibrate"
SCENARIOS = ("lengths", "concurrency", "tiers", "links", "codecs", "fleet")
QUICK_CALIBRATION, QUICK_SCENARIOS = "synthetic", ("tiers",)

_LOOK_SECONDS = 3.0
MOST_POINTS, MOST_MAPE, MOST_P99 = 1.0, 10.0, 20.0


@dataclass(frozen=True, slots=True)
class WallRun:
    """A wall run, how many cores other programs took meanwhile (None where the system does not say), and how many runs
    before it were thrown away because these took too many."""

    name: str
    folder: Path
    others: float | None
    thrown_away: int


class WallRunner:
    """Runs scenarios on the wall clock.

    Args:
        quiet: runs during which other programs took more cores are repeated, after a wait for less; None for none.
        until: clock reading from which on every run is taken as it is.
    """

    def __init__(self, quiet: float | None, until: float) -> None:
        self._quiet = quiet
        self._until = until

    def run(self, path: Path, folder: Path) -> WallRun:
        thrown_away = 0
        while True:
            self._wait()
            print(f"wall run of {path.stem}", flush=True)
            before = _busy()
            scenario = load_scenario(path, ["clock=wall", "events=true"])
            report = asyncio.run(Run(scenario, registry(), folder, progress=lambda line: None).run())
            after = _busy()
            others = None if before is None or after is None else max(0.0, after - before) / report["seconds"]
            if self._quiet is None or others is None or others <= self._quiet or time.monotonic() > self._until:
                return WallRun(path.stem, folder, others, thrown_away)
            print(f"thrown away: other programs took {others:.2f} cores", flush=True)
            thrown_away += 1

    def _wait(self) -> None:
        """Until other programs have taken little for a few seconds."""
        while self._quiet is not None and time.monotonic() < self._until:
            before = _busy()
            time.sleep(_LOOK_SECONDS)
            after = _busy()
            if before is None or after is None or after - before <= self._quiet * _LOOK_SECONDS:
                return


def _busy() -> float | None:
    """Seconds for which processors have worked for others than this process and its children that have ended."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, stat.read_text().splitlines()[0].split()[1:])
    own = os.times()
    total = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return total - own.user - own.system - own.children_user - own.children_system


def add(report: Report, wall: WallRun, virtual: Path, kind: str, *, second: WallRun | None = None) -> dict[str, Any]:
    """One result: what the second run is off by, with every request's numbers."""
    error, pairs = judge(wall.folder, virtual), request_pairs(wall.folder, virtual)
    return report.add(
        wall.name,
        {
            f"{what}_{clock}": [pair[what][side] for pair in pairs]
            for what in ("ttft_seconds", "seconds")
            for side, clock in enumerate(("wall", "virtual"))
        },
        kind=kind,
        others_cores=wall.others if second is None else second.others,
        thrown_away=wall.thrown_away,
        error=error,
        requests=pairs,
    )


def over_all(result: dict[str, Any]) -> dict[str, Any]:
    """The errors over all requests of a result."""
    found: dict[str, Any] = next(each for each in result["error"]["requests"] if each["workload"] is None)
    return found


def met(result: dict[str, Any]) -> bool:
    found = over_all(result)
    ttft = found["ttft"]
    return bool(
        abs(found["hit_rate_points"]) <= MOST_POINTS and ttft["mape"] <= MOST_MAPE and abs(ttft["p99"]) <= MOST_P99
    )


def print_table(results: list[dict[str, Any]]) -> None:
    rows = []
    for result in results:
        found = over_all(result)
        ttft, latency = found["ttft"], found["latency"]
        jobs = [each["error"] for each in result["error"]["jobs"] if each["error"] is not None]
        rows.append(
            [
                result["name"],
                result["kind"],
                found["requests"],
                f"{found['hit_rate']:.4f}",
                f"{found['hit_rate_points']:+.2f}",
                *(f"{ttft[key]:+.1f}" for key in ("mape", "p50", "p90", "p99")),
                f"{latency['mape']:.1f}",
                f"{max(jobs, key=abs):+.1f}" if jobs else None,
                None if result["others_cores"] is None else f"{result['others_cores']:.2f}",
                "yes" if met(result) else "NO",
            ]
        )
    columns = ["scenario", "against", "requests", "hit rate", "points", "MAPE", "p50", "p90", "p99", "latency MAPE"]
    print(table([*columns, "worst job", "others", "within"], rows))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--calibration", help=f"scenario to fit costs to; default: {CALIBRATION}")
    parser.add_argument("--scenario", action="append", help=f"only these; default: {', '.join(SCENARIOS)}")
    parser.add_argument("--quiet", type=float, metavar="CORES", help="repeat wall runs if other programs took more")
    parser.add_argument("--patience", type=float, default=900, help="seconds after which none is repeated")
    parser.add_argument("--again", action="store_true", help="run every scenario twice on the wall clock")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the output of all runs here")
    arguments = parser.parse_args()
    calibration = arguments.calibration or (QUICK_CALIBRATION if arguments.quick else CALIBRATION)
    names = arguments.scenario or (QUICK_SCENARIOS if arguments.quick else SCENARIOS)
    paths = {name: _scenario(name, shipped=arguments.quick) for name in (calibration, *names)}
    parameters = {
        "calibration": calibration,
        "scenarios": list(names),
        "again": arguments.again,
        "quiet": arguments.quiet,
    }
    report = Report("fidelity", arguments, parameters, ("torch", "transformers"))
    logging.getLogger("lmcache_kit").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        runner = WallRunner(arguments.quiet, time.monotonic() + arguments.patience)
        fitted_to = runner.run(paths[calibration], folder / "wall" / calibration)
        walls = [runner.run(paths[name], folder / "wall" / name) for name in names]
        again = [runner.run(paths[name], folder / "again" / name) for name in names] if arguments.again else []
        print("fitting costs and playing", flush=True)
        findings = calibrate(fitted_to.folder, registry())
        for wall in (fitted_to, *walls):
            virtual = folder / "virtual" / wall.name
            judged(wall.folder, findings.costs(), registry(), virtual, progress=lambda line: None)
            add(report, wall, virtual, "its own costs" if wall is fitted_to else "others' costs")
        for wall, second in zip(walls, again, strict=bool(again)):
            add(report, wall, second.folder, "second wall run", second=second)
    print_table(report.results)
    report.write(costs=findings.costs(), figures=figures(findings), notes=findings.notes)


def _scenario(name: str, *, shipped: bool) -> Path:
    """A scenario of this benchmark, or a shipped one, or any file."""
    own = FOLDER / f"{name}.yaml"
    return own if own.exists() and not shipped else find_scenario(name)


if __name__ == "__main__":
    main()
