"""kill -9 in the middle of writes: what is there afterwards is whole."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from lmcache_kit.builtin.storage.disk import DiskBackend

WRITER = """if True:
    import hashlib, os, pathlib, sys
    from lmcache_kit.builtin.storage.disk import DiskBackend
    backend = DiskBackend(pathlib.Path(sys.argv[1]))
    print("writing", flush=True)
    number = 0
    while True:
        body = os.urandom(1 + number * 7919 % 900_000)
        backend.put(f"m.{number % 5}", hashlib.blake2b(body).digest() + body)
        if number % 11 == 0:
            backend.delete(f"m.{number % 3}")
        number += 1
"""


def test_every_entry_is_whole_after_each_of_many_kills(tmp_path: Path):
    rng, whole, leftovers = random.Random(0), 0, 0
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"writing\n"
            time.sleep(rng.uniform(0.02, 0.15))
            writer.kill()
            assert writer.wait() == -signal.SIGKILL
        leftovers += len(list((tmp_path / "tmp").glob("*.part")))
        backend = DiskBackend(tmp_path)
        assert [path for path in (tmp_path / "tmp").iterdir() if path.suffix == ".part"] == []
        entries = dict(backend.entries())
        for name, size in entries.items():
            blob = backend.get(name)
            assert len(blob) == size
            assert hashlib.blake2b(blob[64:]).digest() == blob[:64]
            whole += 1
        backend.close()
    assert whole >= 8
    assert list((tmp_path / "tmp").iterdir()) == []
