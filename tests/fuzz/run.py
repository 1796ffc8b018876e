"""Fuzz with coverage as the guide: ``python tests/fuzz/run.py --seconds 60 [TARGET...]``, one process per target.

The target ``mixed`` is all of them in one process, for a short run.

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
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
MOST_SECONDS = 10  # for one input
MOST_MEMORY = 512 * 2**20  # beyond what the imports took
LARGEST_INPUT = 4096
MOST_KEPT = 36_000  # bytes of a target's corpus
# Whose coverage guides the search.
MODULES = {
    "messages": ["lmcache_kit.messages"],
    "controller": ["lmcache_kit.messages", "lmcache_kit.controller", "lmcache_kit.kv"],
    "blob": ["lmcache_kit.kv", "lmcache_kit.builtin.compression"],
    "peer": ["lmcache_kit.instance.peer", "lmcache_kit.kv"],
    "transport": ["lmcache_kit.builtin.transports"],
    "cachegen": ["lmcache_kit_cachegen", "lmcache_kit_kernels.blocks"],
    "traces": ["lmcache_kit.traces", "lmcache_kit.builtin.traces", "csv"],
    "bodies": ["lmcache_kit.instance.http.schemas", "lmcache_kit.instance.faults"],
}


def main() -> int:
    """Fuzz the named targets, or all, one after another."""
    parser = argparse.ArgumentParser(description="Fuzz the decoders of foreign bytes.")
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--output-dir", type=Path, default=Path("out/fuzz"), help="finds and crashes")
    parser.add_argument("--keep", action="store_true", help="take inputs that reach new code into tests/fuzz/corpus")
    known = parser.parse_args()
    from seeds import seeds

    made = seeds()
    made["mixed"] = [
        bytes([number]) + data
        for number, name in enumerate(made)
        for data in (*made[name], *(path.read_bytes() for path in sorted(CORPUS.glob(f"{name}/*"))))
    ]
    failed = []
    for name in known.targets or MODULES:
        if name not in made:
            parser.error(f"unknown target {name!r}, known: {', '.join(made)}")
        if not _run(name, made[name], known.seconds, known.output_dir):
            failed.append(name)
        elif known.keep and name in MODULES:
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
        output,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={output}/crash-{name}-",
        f"-timeout={MOST_SECONDS}",
        "-print_final_stats=1",
        "-verbosity=0",
        *map(str, folders),
    )


def _keep(name: str, output: Path) -> None:
    """libFuzzer's merge copies, of the finds, the smallest inputs that reach what the corpus does not reach."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    if not _engine(name, output, "-merge=1", "-verbosity=0", str(folder), str(output / name)):
        print(f"{name}: the finds were not merged", file=sys.stderr)
    # The corpus is part of the repository: what does not fit is left where it was found.
    kept = sorted(set(folder.iterdir()) - before, key=lambda path: path.stat().st_size)
    room = MOST_KEPT - sum(path.stat().st_size for path in before)
    for path in kept:
        room -= path.stat().st_size
        if room < 0:
            path.unlink()


def _engine(name: str, output: Path, *arguments: str) -> bool:
    from targets import shared_memory

    # libFuzzer starts itself again to merge, so it needs a program that is this one with its target.
    program = output.resolve() / f"run-{name}"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "run.py"}" --one {name} "$0" "$@"\n')
    program.chmod(0o755)
    command = [str(program), *arguments, f"-max_len={LARGEST_INPUT}", "-rss_limit_mb=0"]
    # Tuples of text hash differently in every process otherwise, and with them the counters of their comparisons.
    # libFuzzer ends its process without a word to Python, so the files of a target are removed here.
    with tempfile.TemporaryDirectory(prefix="lmcache-kit-fuzz-", dir=shared_memory()) as folder:
        environment = {**os.environ, "PYTHONHASHSEED": "0", "FUZZ_FOLDER": folder}
        return subprocess.run(command, env=environment, check=False).returncode == 0


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    modules = MODULES.get(name) or sorted({module for each in MODULES.values() for module in each})
    with atheris.instrument_imports(include=modules):
        import targets
    run = targets.TARGETS.get(name, targets.mixed)
    # An allocation beyond the limit is a MemoryError, which no decoder may raise.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
    with targets.main_guard():
        atheris.Setup(arguments, run)
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:  # this process fuzzes, the rest is libFuzzer's
        _fuzz(sys.argv[2], sys.argv[3:])
    sys.exit(main())
