"""Move: bring prefixes from one tier to another, and check by lookups that they arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from lmcache_kit.builtin.workloads.jobs import finished
from lmcache_kit.builtin.workloads.measures import measured
from lmcache_kit.builtin.workloads.options import MoveOptions
from lmcache_kit.builtin.workloads.served import Served, served, tokens_of
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.units import format_count

__all__ = ["MoveWorkload"]

SETTLE_SECONDS = 5.0


class MoveWorkload(Workload):
    """See :class:`~lmcache_kit.builtin.workloads.options.MoveOptions`."""

    kind = "move"

    def __init__(self, options: MoveOptions) -> None:
        self._options = options

    def needs(self) -> Sequence[str]:
        return [self._options.of]

    def references(self) -> Sequence[tuple[str, str]]:
        places = (self._options.source, self._options.target)
        return [pair for place in places for pair in (("instance", place.instance), ("location", place.location))]

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        options = self._options
        entries = self._chosen(served(context, options.of))
        old, new = _position(options.source), _position(options.target)
        verb = "copy" if options.copy else "move"
        prefixes = format_count(len(entries), "prefixes")
        context.progress(f"{verb} {prefixes} from {' '.join(old)} to {' '.join(new)}")
        latencies: list[float] = []
        states: list[dict[str, Any]] = []
        asked = verified = 0
        start = context.clock.now()
        for entry in entries:
            tokens = await tokens_of(context, entry)
            begin = context.clock.now()
            answer = await context.controller.move(old, new, tokens, copy=options.copy)
            state = await finished(context, answer, options.timeout_seconds, f"{verb} from {' '.join(old)}")
            latencies.append(context.clock.now() - begin)
            states.append(state)
            arrived = await self._arrived(context, tokens, int(answer["num_tokens"]))
            asked += len(tokens)
            verified += arrived
            context.emit(verb, tokens=len(tokens), arrived=arrived, seconds=latencies[-1], job=state)
        seconds = context.clock.now() - start
        values = measured(
            counts={"jobs": len(states), "verified": verified},
            tokens=sum(state["tokens_done"] for state in states),
            bytes_before=sum(state["bytes_before"] for state in states),
            bytes_after=sum(state["bytes_after"] for state in states),
            seconds=seconds,
            latencies=latencies,
            asked_tokens=asked,
            verified=verified == len(states),
            copy=options.copy,
            source=list(old),
            target=list(new),
        )
        return WorkloadResult(name=context.name, kind=self.kind, values=values)

    def _chosen(self, entries: Sequence[Served]) -> list[Served]:
        options = self._options
        if not options.prompts:
            chosen = [entry for entry in entries if entry.instance_id == options.source.instance][:1]
            if not chosen:
                raise InvalidRequestError(f"{options.of} completed nothing on {options.source.instance}")
            return chosen
        for position in options.prompts:
            if position >= len(entries):
                raise InvalidRequestError(f"{options.of} has {len(entries)} prompts, there is no prompt {position}")
        return [entries[position] for position in options.prompts]

    async def _arrived(self, context: WorkloadContext, tokens: Sequence[int], moved: int) -> bool:
        """Whether the target holds the prefix in the controller's eyes, and after a move the source does not."""
        source, target = self._options.source, self._options.target
        deadline = context.clock.now() + SETTLE_SECONDS
        while True:
            holders = (await context.controller.lookup(tokens)).get("holders", {})
            there = int(holders.get(target.instance, {}).get(target.location, 0))
            here = int(holders.get(source.instance, {}).get(source.location, 0))
            if moved > 0 and there >= moved and (self._options.copy or here == 0):
                return True
            if context.clock.now() > deadline:
                return False
            await asyncio.sleep(0.02)


def _position(place: Any) -> tuple[str, str]:
    return place.instance, place.location
