"""The controller without I/O: messages and requests in, answers and calls to make out.

HTTP, ZeroMQ and the simulator drive the same object. It is not thread-safe: one event loop (or one simulation) owns it.
Calls to workers are made by the adapter: an operation returns a :class:`Plan`, the adapter makes its calls and hands
every answer, or the error in its place, to :meth:`ControllerCore.settle`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lmcache_kit.clock import Clock, WallClock
from lmcache_kit.controller.contents import Contents
from lmcache_kit.controller.counters import Counters
from lmcache_kit.controller.explain import explain
from lmcache_kit.controller.inbound import Inbound
from lmcache_kit.controller.lookup import LookupResult, LookupTable
from lmcache_kit.controller.operations import Operations, new_event_id
from lmcache_kit.controller.planning import Outcome, Plan, Planner, check_finish_plan, settle, settle_check_finish
from lmcache_kit.controller.registry import Registry
from lmcache_kit.kv.hashing import HashSpec
from lmcache_kit.messages import PushedMsg, WorkerReplyMsg, WorkerRequestMsg

__all__ = ["ControllerCore"]

_SWEEP_BUDGET = 20_000


class ControllerCore:
    """Registry, index and operations behind one face.

    Args:
        clock: the only source of time.
        default_spec: how workers that announce nothing name their chunks.
        worker_timeout: seconds without a heartbeat after which a worker that sends heartbeats counts as dead; None
            never. Workers that never sent one (LMCache's default) are taken to live until they deregister.
        sync_timeout: seconds without a batch after which a full sync is given up and asked for again.
        new_event_id: makes the ids of operations; a simulation's count.
        heartbeat_address: ``host:port`` of the heartbeat socket for a worker's ip, or None.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        default_spec: HashSpec | None = None,
        worker_timeout: float | None = 60.0,
        sync_timeout: float = 60.0,
        heartbeat_address: Callable[[str], str | None] = lambda ip: None,
        max_operations: int = 10_000,
        new_event_id: Callable[[], str] = new_event_id,
    ) -> None:
        self.clock = clock or WallClock()
        self.counters = Counters()
        self.registry = Registry(self.clock, default_spec or HashSpec())
        self.contents = Contents(self.clock, self.counters)
        self.operations = Operations(self.clock, limit=max_operations, new_event_id=new_event_id)
        self._table = LookupTable(self.registry, self.contents)
        self._inbound = Inbound(
            self.clock,
            self.counters,
            self.registry,
            self.contents,
            self._table,
            heartbeat_address=heartbeat_address,
            worker_timeout=worker_timeout,
            sync_timeout=sync_timeout,
        )
        self._planner = Planner(self.registry, self.operations)

    # --- from workers -------------------------------------------------------------------------------------------------

    def on_pushed(self, message: PushedMsg) -> None:
        """A message of the PULL socket. Raises LMCacheKitError when it cannot be applied."""
        self._inbound.on_pushed(message)

    def on_request(self, message: WorkerRequestMsg) -> WorkerReplyMsg:
        """The answer to a message of the reply or heartbeat socket; refusals are ErrorMsg."""
        return self._inbound.on_request(message)

    def receive_pushed(self, payload: bytes) -> None:
        """A frame of the PULL socket. Never raises: what is no message, or cannot be applied, is counted."""
        self._inbound.receive_pushed(payload)

    def receive_request(self, payload: bytes, socket: str = "reply") -> bytes:
        """The answer to a frame of the reply or heartbeat socket. Never raises."""
        return self._inbound.receive_request(payload, socket)

    def tick(self) -> bool:
        """What time brings: deaths, given-up syncs, sweeping. Whether it should be called again at once."""
        self._inbound.expire()
        return self.contents.index.sweep(_SWEEP_BUDGET)

    # --- from clients -------------------------------------------------------------------------------------------------

    def lookup(self, tokens: Sequence[int]) -> LookupResult:
        """Who holds how much of this prefix."""
        result = self._table.lookup(tokens)
        counters = self.counters
        counters.lookups += 1
        counters.lookup_tokens += len(tokens)
        counters.lookup_hit_tokens += result.longest
        return result

    def explain(self, tokens: Sequence[int], result: LookupResult) -> dict[str, Any]:
        """Why ``result`` is no longer, chunk by chunk (docs/reference/http.md)."""
        return explain(tokens, result, self.registry, self.contents, self._table, self._inbound.strangers)

    @property
    def plan(self) -> Planner:
        """Checks requests and says which workers to call with what."""
        return self._planner

    def settle(self, plan: Plan, outcomes: Sequence[Outcome]) -> int:
        """Take the answers to a plan's calls, in order, and return the number of tokens.

        Raises the LMCacheKitError of the worker that refused or did not answer.
        """
        return settle(self.operations, self.registry, plan, outcomes)

    def check_finish(self, event_id: str) -> Plan:
        """The calls that bring an operation's state up to date (often none). Raises NotFoundError."""
        return check_finish_plan(self.operations, self.registry, event_id)

    def settle_check_finish(self, plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Take the answers and return the operation's state.

        Raises UnavailableError when a worker whose part is still open did not answer.
        """
        return settle_check_finish(self.operations, plan, outcomes)
