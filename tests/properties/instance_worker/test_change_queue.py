"""The queue of cache changes against a list that keeps everything."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.instance.worker.change_queue import ChangeQueue

LOCATIONS = ("LocalCPUBackend", "LocalDiskBackend")
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["admit", "evict"]), st.sampled_from(LOCATIONS), st.integers(0, 5)),
        st.tuples(st.just("take"), st.integers(1, 60)),
        st.tuples(st.just("hold")),
        st.tuples(st.just("release")),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(actions, st.integers(1, 12))
def test_order_numbers_and_bounds(steps: list[tuple], limit: int) -> None:
    woken: list[int] = []
    queue = ChangeQueue(limit, wake=lambda: woken.append(1))
    pending: list[tuple[str, str, int]] = []
    held, lost, dropped = True, False, 0
    numbers: Counter[str] = Counter()
    for step in steps:
        before = len(woken)
        match step:
            case ("add", operation, location, key):
                queue.add(operation, location, key)
                if len(pending) == limit:
                    dropped += limit + 1
                    pending, lost = [], True
                else:
                    pending.append((location, operation, key))
                assert (len(woken) > before) == (not held)
            case ("hold",):
                queue.hold()
                held, lost, pending = True, False, []
            case ("release",):
                queue.release()
                held = False
                assert (len(woken) > before) == bool(pending or lost)
            case ("take", most):
                taken = queue.take(most)
                expected = [] if held else pending[:most]
                pending = pending[len(expected) :]
                for location in LOCATIONS:
                    mine = [(op, key) for place, op, key in expected if place == location]
                    found = [event for place, events in taken if place == location for event in events]
                    assert [(event.op_type, event.key) for event in found] == mine
                    first = numbers[location]
                    assert [event.seq_num for event in found] == list(range(first, first + len(mine)))
                    numbers[location] += len(mine)
                assert len({place for place, _ in taken}) == len(taken)
                assert all(events for _, events in taken)
        assert len(queue) == len(pending) <= limit
        assert queue.ready == (0 if held else len(pending))
        assert (queue.lost, queue.dropped) == (lost, dropped)
