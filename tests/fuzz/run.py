"""Fuzz with coverage as the guide: ``python tests/fuzz/run.py --seconds 60 [TARGET...]``, one process per target.

An input that a target does not survive is written to ``out/fuzz/crash-TARGET-...`` and ends the run with exit code 1.
What was learnt is kept in ``out/fuzz/TARGET`` and goes on from there; ``--keep`` also takes what reaches new code
into ``tests/fuzz/corpus``, which the ordinary tests play.

The engine is libFuzzer by way of Atheris (Google, Apache-2.0): wheels for every Python that we support on Linux, tens
of thousands of inputs a second with bytecode coverage, and it stops a target that runs on for seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
MOST_SECONDS = 10  # for one input
MOST_MEMORY = 512 * 2**20  # beyond what the imports took
LARGEST_INPUT = 4096


def main() -> int:
    """Fuzz the named targets, or all, one after another."""
    parser = argparse.ArgumentParser(description="Fuzz the decoders of foreign bytes.")
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--output-dir", type=Path, default=Path("out/fuzz"), help="finds and crashes")
    parser.add_argument("--keep", action="store_true", help="take inputs that reach new code into tests/fuzz/corpus")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # this process fuzzes, the rest is libFuzzer's
    known, rest = parser.parse_known_args()
    if known.one is not None:
        _fuzz(known.one, [str(each) for each in known.targets] + rest)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    from seeds import seeds

    made = seeds()
    failed = []
    for name in known.targets or made:
        if name not in made:
            parser.error(f"unknown target {name!r}, known: {', '.join(made)}")
        if not _run(name, made[name], known.seconds, known.output_dir):
            failed.append(name)
        elif known.keep:
            _keep(name, known.output_dir)
    if failed:
        print(f"found something: {', '.join(failed)}; the inputs are in {known.output_dir}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, seeds: list[bytes], seconds: int, output: Path) -> bool:
    folders = [output / name, output / "seeds" / name]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folders[1] / str(number)).write_bytes(seed)
    if (CORPUS / name).is_dir():
        folders.append(CORPUS / name)
    print(f"{name}: {seconds} s", flush=True)
    return _engine(
        name,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={output}/crash-{name}-",
        f"-timeout={MOST_SECONDS}",
        "-print_final_stats=1",
        "-verbosity=0",
        *map(str, folders),
    )


def _keep(name: str, output: Path) -> None:
    """libFuzzer's merge copies, of the finds, the smallest inputs that reach what the corpus does not reach."""
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    _engine(name, "-merge=1", "-verbosity=0", str(CORPUS / name), str(output / name))


def _engine(name: str, *arguments: str) -> bool:
    command = [
        sys.executable,
        __file__,
        "--one",
        name,
        "--",
        *arguments,
        f"-max_len={LARGEST_INPUT}",
        "-rss_limit_mb=0",
    ]
    # Atheris finds the code of its callbacks by hashes of text at places; the seed makes runs with one -seed alike.
    return subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "0"}, check=False).returncode == 0


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    modules = [
        "lmcache_kit.messages",
        "lmcache_kit.controller",
        "lmcache_kit.kv",
        "lmcache_kit.builtin.compression",
        "lmcache_kit.builtin.transports",
        "lmcache_kit.builtin.traces",
        "lmcache_kit.traces",
        "lmcache_kit.instance.peer",
        "lmcache_kit.instance.http.schemas",
        "lmcache_kit.instance.faults",
        "lmcache_kit_cachegen",
        "lmcache_kit_kernels.blocks",
    ]
    with atheris.instrument_imports(include=modules):
        import targets
    run = targets.TARGETS[name].run
    # An allocation beyond the limit is a MemoryError, which no decoder may raise.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
    with targets.main_guard():
        atheris.Setup([sys.argv[0], *arguments], run)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
