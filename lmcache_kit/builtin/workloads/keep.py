"""Pin, unpin and clear."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_kit.builtin.workloads.holdings import held_bytes
from lmcache_kit.builtin.workloads.measures import measured
from lmcache_kit.builtin.workloads.options import ClearOptions, PinOptions
from lmcache_kit.builtin.workloads.served import served, tokens_of
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import ConfigError
from lmcache_kit.units import format_count

__all__ = ["ClearWorkload", "PinWorkload"]


class PinWorkload(Workload):
    """Pin every prompt of an earlier workload on the instance that served it, or release it."""

    def __init__(self, options: PinOptions, *, release: bool) -> None:
        if release and options.ttl_seconds is not None:
            raise ConfigError("unpin takes no ttl_seconds", hint="remove it")
        self._options = options
        self._release = release

    def needs(self) -> Sequence[str]:
        return [self._options.of]

    def references(self) -> Sequence[tuple[str, str]]:
        return [("location", self._options.location)]

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        options, kind = self._options, "unpin" if self._release else "pin"
        entries = served(context, options.of)
        for entry in entries:
            await tokens_of(context, entry)
        context.progress(f"{kind} {format_count(len(entries), 'prompts')}")
        before = await held_bytes(context)
        latencies: list[float] = []
        tokens = 0
        start = context.clock.now()
        for position, entry in enumerate(entries):
            begin = context.clock.now()
            if self._release:
                answer = await context.controller.unpin(
                    entry.instance_id, options.location, entry.tokens, owner=options.owner
                )
            else:
                answer = await context.controller.pin(
                    entry.instance_id, options.location, entry.tokens, owner=options.owner, ttl=options.ttl_seconds
                )
            latencies.append(context.clock.now() - begin)
            tokens += int(answer["num_tokens"])
            context.emit(kind, position=position, instance=entry.instance_id, tokens=answer["num_tokens"])
        seconds = context.clock.now() - start
        values = measured(
            counts={"calls": len(entries)},
            tokens=tokens,
            bytes_before=before,
            bytes_after=await held_bytes(context),
            seconds=seconds,
            latencies=latencies,
            location=options.location,
        )
        return WorkloadResult(name=context.name, kind=kind, values=values)


class ClearWorkload(Workload):
    """See :class:`~lmcache_kit.builtin.workloads.options.ClearOptions`."""

    kind = "clear"

    def __init__(self, options: ClearOptions) -> None:
        self._options = options

    def references(self) -> Sequence[tuple[str, str]]:
        named = [("instance", name) for name in self._options.instances]
        return [("location", self._options.location), *named]

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        location = self._options.location
        having = [name for name, handle in context.instances.items() if location in handle.locations]
        names = self._options.instances or having
        context.progress(f"clear {location} of {', '.join(names)}")
        before = await held_bytes(context)
        latencies: list[float] = []
        tokens = 0
        start = context.clock.now()
        for name in names:
            begin = context.clock.now()
            answer = await context.controller.clear(name, location)
            latencies.append(context.clock.now() - begin)
            tokens += int(answer["num_tokens"])
            context.emit(self.kind, instance=name, location=location, tokens=answer["num_tokens"])
        seconds = context.clock.now() - start
        values = measured(
            counts={"calls": len(names)},
            tokens=tokens,
            bytes_before=before,
            bytes_after=await held_bytes(context),
            seconds=seconds,
            latencies=latencies,
            location=location,
        )
        return WorkloadResult(name=context.name, kind=self.kind, values=values)
