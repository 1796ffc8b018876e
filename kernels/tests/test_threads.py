"""Work over all cores: results in order, errors that do not depend on threads, and calls within calls."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmcache_kit_kernels import threads
from lmcache_kit_kernels.threads import block_ranges, in_parallel, over_blocks


@pytest.fixture(params=[1, 2, 5])
def cores(request, monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: request.param)
    monkeypatch.setattr(threads, "_pool", None)
    yield request.param
    if threads._pool is not None:
        threads._pool.shutdown()


@pytest.mark.parametrize(("count", "elements"), [(0, 10), (1, 1 << 20), (2, 1), (7, 1 << 20), (64, 1 << 14), (5, 0)])
def test_ranges_cover_all_blocks_in_order(cores, count, elements):
    ranges = block_ranges(count, elements)
    assert [index for some in ranges for index in range(count)[some]] == list(range(count))
    assert len(ranges) >= min(count, cores)
    parts = over_blocks(count, elements, lambda some: list(range(count)[some]))
    assert [index for part in parts for index in part] == list(range(count))


def test_results_are_in_order(cores):
    assert in_parallel(lambda item: item * item, range(1000)) == [item * item for item in range(1000)]
    assert in_parallel(str, []) == []


def test_all_cores_work_at_once(cores):
    barrier = threading.Barrier(cores, timeout=60)
    workers = in_parallel(lambda item: (barrier.wait(), threading.get_ident())[1], range(cores))
    assert len(set(workers)) == cores
    assert cores == 1 or threading.get_ident() in workers


@settings(max_examples=50, deadline=None)
@given(wrong=st.sets(st.integers(0, 30), min_size=1))
def test_the_error_is_that_of_the_first_item_that_fails(wrong):
    def work(item):
        if item in wrong:
            raise ValueError(item)

    with pytest.raises(ValueError, match=f"^{min(wrong)}$"):
        in_parallel(work, range(31))
    assert in_parallel(lambda item: item, range(3)) == [0, 1, 2]


def test_work_within_work_keeps_to_its_thread(cores):
    def outer(item):
        inner = in_parallel(lambda _: threading.get_ident(), range(5))
        inner += over_blocks(7, 1 << 30, lambda some: (threading.get_ident(), some)[0])
        return (set(inner) == {threading.get_ident()}, len(inner))

    assert in_parallel(outer, range(20)) == [(True, 12 if cores == 1 else 6)] * 20


def test_callers_from_many_threads(cores):
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda start: in_parallel(lambda item: item + start, range(50)), range(40)))
    assert results == [[item + start for item in range(50)] for start in range(40)]


FORKED = """
import os
from lmcache_kit_kernels import threads
threads.usable_cores = lambda: 2
before = threads.in_parallel(str, range(100))
with threads._lock:
    child = os.fork()
    if child == 0:
        os._exit(0 if threads.in_parallel(str, range(100)) == before else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(threads.os, "fork"), reason="this system has no fork")
def test_a_forked_child_makes_its_own_threads():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.stdout.strip(), result.returncode) == ("0", 0), result.stderr
