"""How far simulated times are from measured ones: costs fitted to one scenario, judged on others.

In every round each scenario of `benchmarks/fidelity` runs on the wall clock, one after the other. Costs are fitted to
the rounds of `calibrate` alone, as `lmcache-kit calibrate` does; the scenario itself and every other are then played in
virtual time with them. A machine is faster in one minute than in the next, so a request's measured time is the median
of its rounds, and rounds say themselves how far one is from the others. Of each scenario, in percent of times to first
token:

- `virtual`: the virtual run. MAPE is the mean over the requests of |virtual - median| / median; p50, p90 and p99 are of
  all requests, against the median of the rounds' own percentiles. `points`: of the token hit rate, a difference.
- `one round`: each wall round in its place, against the median of the other rounds. No model is nearer to a single
  round than that. Medians of the rounds.

Let the machine do nothing else meanwhile. `others` says how many cores other programs took; --quiet repeats wall runs
that were disturbed, and the file says how often. --keep and --judge: wall runs of one day, judged again by a model of
the next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Report, argument_parser, table

from lmcache_kit.analysis.events import read_events
from lmcache_kit.analysis.requests import place_of
from lmcache_kit.calibration import calibrate, figures, judged
from lmcache_kit.live import Run
from lmcache_kit.plugins import registry
from lmcache_kit.report import read_report
from lmcache_kit.report.percentiles import percentile
from lmcache_kit.scenario import find_scenario, load_scenario

FOLDER = Path(__file__).parent / "fidelity"
CALIBRATION = "calibrate"
SCENARIOS = ("lengths", "concurrency", "tiers", "links", "codecs", "fleet")
QUICK_CALIBRATION, QUICK_SCENARIOS = "synthetic", ("tiers",)
ROUNDS, QUICK_ROUNDS = 5, 2
PERCENTS = (50, 90, 99)

_LOOK_SECONDS = 3.0
MOST_POINTS, MOST_MAPE, MOST_P99 = 1.0, 10.0, 20.0

Place = tuple[str, str, int]
"""Workload, session, and the turn in it or, without a session, the position in the workload."""
Times = Mapping[Place, float]
"""Seconds to the first token."""


@dataclass(frozen=True, slots=True)
class WallRun:
    """A wall run, how many cores other programs took meanwhile (None where the system does not say), and how many runs
    before it were thrown away because these took too many."""

    folder: Path
    others: float | None
    thrown_away: int

    def note(self) -> None:
        facts = {"others": self.others, "thrown_away": self.thrown_away}
        (self.folder / "disturbed.json").write_text(json.dumps(facts))

    @classmethod
    def noted(cls, folder: Path) -> WallRun:
        return cls(folder, **json.loads((folder / "disturbed.json").read_text()))


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
                wall = WallRun(folder, others, thrown_away)
                wall.note()
                return wall
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
    """Processor seconds that all programs but this one and its processes have taken."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    total = sum(int(value) for place, value in enumerate(fields) if place not in (3, 4)) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return total - own.user - own.system - own.children_user - own.children_system


def times_of(folder: Path) -> dict[Place, float]:
    """Of all answered requests of a run."""
    return {
        (event.workload, *place): event.ttft_seconds
        for event in read_events(folder / "events.jsonl")
        if event.event == "request" and event.ttft_seconds and (place := place_of(event)) is not None
    }


def hit_rate(folder: Path) -> float:
    """Cached tokens of all prompt tokens of a run."""
    requests = [event for event in read_events(folder / "events.jsonl") if event.event == "request"]
    return sum(event.cached_tokens or 0 for event in requests) / sum(event.prompt_tokens or 0 for event in requests)


def errors(times: Times, rounds: Sequence[Times]) -> dict[str, float]:
    """How far times are from those of wall rounds, in percent; see the head of this file."""
    medians = {key: statistics.median(each[key] for each in rounds if key in each) for key in _keys(rounds)}
    both = [key for key in medians if key in times]
    if not both:
        sys.exit("error: the runs have no request in common; wall runs kept by an older version do not say their turns")
    found = {"mape": 100 * statistics.fmean(abs(times[key] - medians[key]) / medians[key] for key in both)}
    for percent in PERCENTS:
        measured = statistics.median(percentile(list(each.values()), percent) for each in rounds)
        found[f"p{percent}"] = 100 * (percentile(list(times.values()), percent) - measured) / measured
    return found


def _keys(rounds: Iterable[Times]) -> list[Place]:
    return sorted({key for each in rounds for key in each})


def median_of(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median size of each error."""
    return {key: statistics.median(abs(one[key]) for one in each) for key in each[0]}


def jobs_of(virtual: Path, walls: Sequence[Path]) -> list[dict[str, Any]]:
    """Seconds of the jobs of each workload together, and the error against the median of the rounds in percent."""
    walled: dict[str, list[float]] = defaultdict(list)
    for folder in walls:
        for workload, seconds in _job_seconds(folder).items():
            walled[workload].append(seconds)
    own = _job_seconds(virtual)
    return [
        {
            "workload": workload,
            "wall_seconds": seconds,
            "virtual_seconds": own[workload],
            "error": 100 * (own[workload] / statistics.median(seconds) - 1),
        }
        for workload, seconds in walled.items()
        if own.get(workload)
    ]


def _job_seconds(folder: Path) -> dict[str, float]:
    return {
        result["name"]: result["seconds"]
        for result in read_report(folder / "report.json")["results"]
        if result.get("kind") in ("compress", "decompress", "move") and result.get("seconds")
    }


def facts_of(kind: str, walls: Sequence[WallRun], virtual: Path, judgement: Mapping[str, Any]) -> dict[str, Any]:
    """All that is recorded of a scenario."""
    folders = [wall.folder for wall in walls]
    rounds, played = [times_of(folder) for folder in folders], times_of(virtual)
    rates = [hit_rate(folder) for folder in folders]
    return {
        "kind": kind,
        "rounds": len(walls),
        "others_cores": [wall.others for wall in walls],
        "thrown_away": sum(wall.thrown_away for wall in walls),
        "failure": judgement["failure"],
        "decisions_equal_first_round": judgement["decisions_equal"],
        "hit_rate": {"rounds": rates, "virtual": hit_rate(virtual)},
        "hit_rate_points": 100 * (hit_rate(virtual) - statistics.median(rates)),
        "virtual": errors(played, rounds),
        "virtual_against_single_rounds": median_of([errors(played, [each]) for each in rounds]),
        "one_round": median_of(
            [errors(each, rounds[:place] + rounds[place + 1 :]) for place, each in enumerate(rounds)]
        ),
        "jobs": jobs_of(virtual, folders),
        "requests": [
            {
                "workload": place[0],
                "session": place[1],
                "position": place[2],
                "wall_seconds": [each.get(place) for each in rounds],
                "virtual_seconds": played.get(place),
            }
            for place in _keys(rounds)
        ],
    }


def met(result: Mapping[str, Any]) -> bool:
    found = result["virtual"]
    return bool(
        abs(result["hit_rate_points"]) <= MOST_POINTS and found["mape"] <= MOST_MAPE and abs(found["p99"]) <= MOST_P99
    )


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for result in results:
        own, other = result["virtual"], result["one_round"]
        jobs = [each["error"] for each in result["jobs"]]
        others = [each for each in result["others_cores"] if each is not None]
        rows.append(
            [
                result["name"],
                len(result["requests"]),
                f"{result['hit_rate_points']:+.2f}",
                f"{own['mape']:.1f}",
                *(f"{own[f'p{percent}']:+.1f}" for percent in PERCENTS),
                f"{result['virtual_against_single_rounds']['mape']:.1f}",
                f"{other['mape']:.1f}",
                f"{other['p99']:.1f}",
                f"{max(jobs, key=abs):+.1f}" if jobs else None,
                f"{max(others):.2f}" if others else None,
                "yes" if met(result) else "NO",
            ]
        )
    columns = ["scenario", "requests", "points", "MAPE", *(f"p{percent}" for percent in PERCENTS), "MAPE, single round"]
    print(table([*columns, "one round: MAPE", "p99", "worst job", "others", "within"], rows))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--calibration", help=f"scenario to fit costs to; default: {CALIBRATION}")
    parser.add_argument("--scenario", action="append", help=f"only these; default: {', '.join(SCENARIOS)}")
    parser.add_argument("--rounds", type=int, help=f"wall runs of each scenario, at least 2; default: {ROUNDS}")
    parser.add_argument("--quiet", type=float, metavar="CORES", help="repeat wall runs if other programs took more")
    parser.add_argument("--patience", type=float, default=900, help="seconds after which none is repeated")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the output of all runs here")
    parser.add_argument(
        "--judge", type=Path, metavar="DIR", help="judge wall runs kept there, as many rounds as it has"
    )
    arguments = parser.parse_args()
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    if arguments.judge is not None:
        rounds = len(list(arguments.judge.glob("round-*")))
    if rounds < 2:
        parser.error("--rounds: one round cannot be held against the others")
    calibration = arguments.calibration or (QUICK_CALIBRATION if arguments.quick else CALIBRATION)
    names = arguments.scenario or (QUICK_SCENARIOS if arguments.quick else SCENARIOS)
    paths = {name: _scenario(name, shipped=arguments.quick) for name in (calibration, *names)}
    parameters = {
        "calibration": calibration,
        "scenarios": list(names),
        "rounds": rounds,
        "quiet": arguments.quiet,
        "wall_runs_kept": arguments.judge is not None,
    }
    report = Report("fidelity", arguments, parameters, ("torch", "transformers"))
    logging.getLogger("lmcache_kit").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        runner = WallRunner(arguments.quiet, time.monotonic() + arguments.patience)
        walls: dict[str, list[WallRun]] = {name: [] for name in paths}
        for number in range(rounds):
            for name, path in paths.items():
                place = Path(f"round-{number}", name)
                kept = arguments.judge and WallRun.noted(arguments.judge / place)
                walls[name].append(kept or runner.run(path, folder / place))
        print("fitting costs and playing", flush=True)
        findings = calibrate([wall.folder for wall in walls[calibration]], registry())
        for name, runs in walls.items():
            virtual = folder / "virtual" / name
            found = judged(runs[0].folder, findings.costs(), registry(), virtual, progress=lambda line: None)
            kind = "its own costs" if name == calibration else "others' costs"
            report.add(name, {}, **facts_of(kind, runs, virtual, found))
    print_table(report.results)
    report.write(costs=findings.costs(), figures=figures(findings), notes=findings.notes)


def _scenario(name: str, *, shipped: bool) -> Path:
    """A scenario of this benchmark, or a shipped one, or any file."""
    own = FOLDER / f"{name}.yaml"
    return own if own.exists() and not shipped else find_scenario(name)


if __name__ == "__main__":
    main()
