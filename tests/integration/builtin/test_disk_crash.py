"""kill -9 in the middle of writes: what is there afterwards is whole."""

from __future__ import annotations

import contextlib
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
    # The system may write less than it was asked to; here it always does, so that kills hit the middle of files.
    whole_write = os.write
    os.write = lambda fd, data: whole_write(fd, data[:1024])
    number = 0
    while True:
        body = os.urandom(500) * (1 + number * 7919 % 1800)
        backend.put(f"m.{number % 5}", hashlib.blake2b(body).digest() + body)
        if number % 11 == 0:
            backend.delete(f"m.{number % 3}")
        number += 1
"""


def half_written(root: Path) -> bool:
    for part in (root / "tmp").glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            if part.stat().st_size:
                return True
    return False


def test_every_entry_is_whole_after_each_of_many_kills(tmp_path: Path):
    rng, whole, leftovers = random.Random(0), 0, 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"writing\n"
            time.sleep(rng.uniform(0.01, 0.1))
            deadline = time.monotonic() + 30
            while not (any(tmp_path.rglob("*.blob")) and half_written(tmp_path)) and time.monotonic() < deadline:
                pass
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
    assert whole >= 6
    assert leftovers >= 1  # or else no kill came while a file was being written
    assert list((tmp_path / "tmp").iterdir()) == []
