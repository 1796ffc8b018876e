"""No clock, pause or source of chance but those that are passed in, where decisions are made: a virtual run depends on
nothing else, and is the same every time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "lmcache_kit"

PLACES = ["sim", "traffic", "faults", "traces", "instance/core"]
CONTROLLER = [
    "contents",
    "core",
    "explain",
    "handlers",
    "index",
    "inbound",
    "lookup",
    "operations",
    "planning",
    "registry",
]
SHARED = [
    "instance/store/jobs.py",
    "instance/store/arrivals.py",
    "instance/store/planning.py",
    "instance/store/prefix.py",
]

# Entropy, clocks, and what runs beside the event loop.
MODULES = {"time", "secrets", "uuid", "threading", "multiprocessing", "concurrent", "subprocess", "socket", "signal"}
CALLS = {
    *(f"datetime.{name}" for name in ("now", "utcnow", "today")),
    *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
    "date.today",
    "datetime.date.today",
    *(f"os.{name}" for name in ("urandom", "getrandom", "getpid", "times")),
    "asyncio.to_thread",
    "asyncio.run",
    "asyncio.new_event_loop",
    "random.SystemRandom",
    # Order by address, and hashes of text that every process salts anew.
    "hash",
}

# The controller makes names of events by chance unless its maker gives it something else, as the simulator does.
EXCEPTIONS = {"controller/operations.py": ["import uuid"]}


def files() -> list[Path]:
    found = [path for place in PLACES for path in (CORE / place).rglob("*.py")]
    found += [
        CORE / "controller" / f"{name}.py" for name in CONTROLLER if (CORE / "controller" / f"{name}.py").exists()
    ]
    return sorted([*found, *(CORE / path for path in SHARED)])


def offences(source: str) -> list[str]:
    """What a module uses of what is banned, as ``line: what``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
            found += [
                f"{node.lineno}: import {a.name} as {a.asname}" for a in node.names if a.name == "random" and a.asname
            ]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = (node.module or "").split(".")[0]
            if module in MODULES:
                found.append(f"{node.lineno}: from {node.module} import {', '.join(names)}")
            if module == "random":
                found += [f"{node.lineno}: from random import {name}" for name in names if name != "Random"]
            if module in ("os", "numpy") and {"urandom", "random", "getrandom"} & set(names):
                found.append(f"{node.lineno}: from {node.module} import {', '.join(names)}")
        elif isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            unseeded = call in ("random.Random", "Random", "np.random.default_rng") and not node.args
            global_state = call.startswith(("random.", "np.random.", "numpy.random.")) and call not in (
                "random.Random",
                "np.random.default_rng",
            )
            if call in CALLS or unseeded or global_state:
                found.append(f"{node.lineno}: {call}()")
    return found


def test_there_are_modules_to_look_at() -> None:
    names = {path.relative_to(CORE).as_posix() for path in files()}
    assert {"sim/loop.py", "traffic/dispatch.py", "faults/driver.py", "instance/core/cache.py"} <= names
    assert {"controller/core.py", "controller/lookup.py", "controller/registry.py"} <= names


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(CORE).as_posix())
def test_only_what_is_passed_in_tells_time_or_draws(path: Path) -> None:
    found = [offence.split(": ", 1)[1] for offence in offences(path.read_text())]
    assert found == EXCEPTIONS.get(path.relative_to(CORE).as_posix(), [])


def test_the_simulated_controller_names_events_itself() -> None:
    assert "new_event_id=self._new_event_id" in (CORE / "sim/controller.py").read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import time as t",
        "from time import perf_counter",
        "def f():\n    import secrets",
        "import uuid",
        "import random as r",
        "from random import random",
        "import random\nrandom.random()",
        "import random\nrandom.shuffle([])",
        "import random\nrandom.Random()",
        "from random import Random\nRandom()",
        "import numpy as np\nnp.random.default_rng()",
        "import numpy as np\nnp.random.rand(3)",
        "import os\nos.urandom(3)",
        "from os import urandom",
        "from numpy import random",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.now()",
        "import threading",
        "import asyncio\nasyncio.to_thread(print)",
        "hash('a')",
    ],
)
def test_what_is_banned_is_found(source: str) -> None:
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio\nasyncio.sleep(1)",
        "import random\nrandom.Random('seed')",
        "import random\ndef f(rng: random.Random): return rng.random()",
        "from datetime import datetime\ndatetime.fromtimestamp(0)",
    ],
)
def test_what_is_allowed_passes(source: str) -> None:
    assert offences(source) == []
