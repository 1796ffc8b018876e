"""Branches that tests take, by package; status 1 when a package is under the least share in percent.

Usage: branch_coverage.py COVERAGE_JSON LEAST (the file is of `coverage json`).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

PACKAGES = ("controller", "instance", "kv", "sim")


def main() -> None:
    files, least = json.loads(Path(sys.argv[1]).read_text())["files"], float(sys.argv[2])
    taken: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, facts in files.items():
        package = Path(name).parts[1]
        taken[package] += facts["summary"]["covered_branches"]
        total[package] += facts["summary"]["num_branches"]
    low = []
    for package in PACKAGES:
        share = 100 * taken[package] / total[package]
        low += [package] if share < least else []
        print(f"lmcache_kit/{package:<12}{taken[package]:>6} of {total[package]:>6} branches {share:7.2f} %")
    if low:
        sys.exit(f"under {least:g} %: {', '.join(low)}")


if __name__ == "__main__":
    main()
