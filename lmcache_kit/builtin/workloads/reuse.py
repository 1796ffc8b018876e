"""How much of a trace a cache of a given size and policy would hit: no fleet, no time, no engine."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_kit.builtin.workloads.reuse_options import ReuseOptions
from lmcache_kit.contracts.records import EvictionPlugin
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.plugins import registry
from lmcache_kit.traces import load_trace, make_reader
from lmcache_kit.traces.reuse import replay

__all__ = ["ReuseWorkload"]


class ReuseWorkload(Workload):
    """Replays ids through an eviction policy plugin, and beside it through a cache that never evicts.

    Every id weighs one byte to the policy, so a capacity in bytes is one in ids. Sizes play no part.
    """

    def __init__(self, options: ReuseOptions) -> None:
        self._options = options
        plugins = registry()
        self._policy = plugins.get(EvictionPlugin, options.policy)
        self._policy_options = plugins.options(self._policy, options.policy_options)
        self._reader = make_reader(options.reader, options.reader_options)

    def references(self) -> Sequence[tuple[str, str]]:
        return [("trace", self._options.reader), ("eviction", self._options.policy)]

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        options = self._options
        begun = context.clock.now()
        try:
            form, records = load_trace(context.base_dir / options.path, self._reader, limit=options.limit)
        except LMCacheKitError as error:
            raise ConfigError(error.message, hint=error.hint) from None
        context.progress(f"replaying {len(records):,} requests")
        partial = options.partial_blocks
        endless = replay(records, form.block_size, partial_blocks=partial)
        found = endless
        if options.capacity is not None:
            policy = self._policy.factory(self._policy_options, options.capacity)
            found = replay(records, form.block_size, policy=policy, capacity=options.capacity, partial_blocks=partial)
        values = {
            "counts": {"requests": found.plain.requests, "blocks": found.plain.blocks},
            "tokens": found.plain.tokens,
            "distinct_blocks": found.distinct,
            "block_size": form.block_size,
            "policy": options.policy,
            "capacity": options.capacity,
            **found.facts(),
            "infinite": endless.facts(),
            "seconds": context.clock.now() - begun,
        }
        return WorkloadResult(name=context.name, kind="reuse", values=values)
