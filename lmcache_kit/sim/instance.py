"""An instance in virtual time: admission, load, prefill, save, decode; and what it tells the controller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmcache_kit.errors import UnavailableError
from lmcache_kit.instance.core.events import CacheChange
from lmcache_kit.instance.http.answers import cache_facts, usage
from lmcache_kit.instance.http.completion import GenerationFacts
from lmcache_kit.instance.store.reader import Chunk
from lmcache_kit.instance.worker.change_queue import ChangeQueue
from lmcache_kit.sim.engine import SimEngine
from lmcache_kit.sim.loop import VirtualLoop
from lmcache_kit.sim.processor import Processor
from lmcache_kit.sim.store import Loaded, Saved, SimStore

__all__ = ["Answer", "SimInstance"]


@dataclass(slots=True)
class Answer:
    """A completion as its client sees it; times in seconds from sending the request."""

    ttft_seconds: float
    seconds: float
    facts: GenerationFacts

    def body(self) -> dict[str, Any]:
        """The keys that a streamed completion's last chunk carries."""
        return {"usage": usage(self.facts), "lmcache_kit": cache_facts(self.facts)}


@dataclass(slots=True)
class _Request:
    chunks: Sequence[Chunk]
    length: int
    max_tokens: int
    sent: float
    done: Callable[[Answer | UnavailableError], object]
    facts: GenerationFacts
    arrived: float = 0.0
    ttft: float = 0.0
    open_parts: int = 2
    life: int = 0
    start: int = field(default=0)


_Unread = tuple[float, Callable[[_Request], None], _Request]


class SimInstance:
    """One instance with one worker.

    Args:
        loop: virtual time.
        instance_id: its name.
        store: its store; changes of its contents are to be handed to :meth:`changed`.
        engine: its engine.
        processor: what works on requests, with others; None for one of its own.
        request_seconds: what a completion takes besides; on a shared processor, one after another.
        request_token: what each token of its prompt does.
        max_num_seqs: most requests worked on at the same time.
        report_seconds: from a change to when it is handed to ``report``.
        report: takes changes to the controller.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        instance_id: str,
        engine: SimEngine,
        *,
        processor: Processor | None = None,
        request_seconds: float,
        request_token: float,
        max_num_seqs: int,
        report_seconds: float,
        report: Callable[[SimInstance], object],
    ) -> None:
        self._loop = loop
        self.instance_id = instance_id
        self.engine = engine
        self.store: SimStore
        self._processor = processor
        self._request_seconds = request_seconds
        self._request_token = request_token
        self._max_num_seqs = max_num_seqs
        self._report_seconds = report_seconds
        self._report = report
        self._waiting: deque[_Request] = deque()
        self._unread: deque[_Unread] = deque()
        self._open: dict[int, _Request] = {}
        self._running = 0
        self._reporting = False
        self.alive = True
        self.life = 0
        self.changes = ChangeQueue(2**62)

    # --- completions -------------------------------------------------------------------------------------------------

    def complete(
        self,
        chunks: Sequence[Chunk],
        length: int,
        max_tokens: int,
        done: Callable[[Answer | UnavailableError], object],
        *,
        text: bool = False,
    ) -> None:
        """A completion of a prompt of ``length`` tokens; ``done`` is called with its answer, or why there is none.

        ``text``: the prompt is sent as a text, so that the engine has to make tokens of it.
        """
        if not self.alive:
            self._loop.after(self._request_seconds, done, self._down())
            return
        request = _Request(
            chunks, length, max_tokens, self._loop.time(), done, GenerationFacts(prompt_tokens=length), life=self.life
        )
        self._open[id(request)] = request
        seconds = self._request_seconds + length * self._request_token
        arrive = self._read if text else self._arrive
        if self._processor is None:
            self._loop.after(seconds, arrive, request)
            return
        # One thread reads them all, so the first of several has begun to compute before the last has been read.
        self._unread.append((seconds, arrive, request))
        if len(self._unread) == 1:
            self._processor.run(seconds, self._was_read, self._unread)

    def _was_read(self, unread: deque[_Unread]) -> None:
        if unread is not self._unread:  # the instance was killed meanwhile
            return
        assert self._processor is not None
        _, arrive, request = unread.popleft()
        arrive(request)
        if unread:
            self._processor.run(unread[0][0], self._was_read, unread)

    def _down(self) -> UnavailableError:
        return UnavailableError(f"the instance {self.instance_id} cannot be reached")

    def _read(self, request: _Request) -> None:
        if request.life == self.life:
            self.engine.tokenize(request.length, lambda: self._arrive(request))

    def _arrive(self, request: _Request) -> None:
        if request.life != self.life:
            return
        request.arrived = self._loop.time()
        if self._running < self._max_num_seqs:
            self._begin(request)
        else:
            self._waiting.append(request)

    def _begin(self, request: _Request) -> None:
        self._running += 1
        request.facts.queue_seconds = self._loop.time() - request.arrived
        request.start = 0
        # The last prompt token is always computed: its output is the first token of the answer.
        began = self._loop.time()
        self.store.load(request.chunks, request.length - 1, lambda loaded: self._loaded(request, began, loaded))

    def _loaded(self, request: _Request, began: float, loaded: Loaded) -> None:
        if request.life != self.life:
            return
        facts = request.facts
        facts.load_seconds = self._loop.time() - began
        facts.cached_tokens = loaded.num_tokens
        facts.cached_tokens_by_location = loaded.by_location
        facts.codecs = loaded.codecs
        facts.loaded_bytes = loaded.nbytes
        facts.loaded_kv_bytes = self.store.layout.nbytes(loaded.num_tokens)
        new = request.length - loaded.num_tokens
        self.engine.prefill(new, loaded.num_tokens, lambda: self._prefilled(request))

    def _prefilled(self, request: _Request) -> None:
        if request.life != self.life:
            return
        request.facts.ttft_seconds = self._loop.time() - request.arrived
        self.engine.show(lambda: self._shown(request))

    def _shown(self, request: _Request) -> None:
        if request.life != self.life:
            return
        facts = request.facts
        request.ttft = self._loop.time() - request.sent
        cached = facts.cached_tokens
        start = cached - cached % self.store.hasher.spec.chunk_size
        facts.start_seconds, facts.prefill_seconds, facts.copy_seconds = self.engine.work(
            request.length - cached, cached, request.length - start
        )
        self.engine.go_on(
            request.length - start,
            lambda: self._copied(request, start),
            request.max_tokens - 1,
            request.length,
            lambda seconds: self._decoded(request, seconds),
        )

    def _copied(self, request: _Request, start: int) -> None:
        if request.life == self.life:
            began = self._loop.time()
            self.store.save(request.chunks, start, lambda saved: self._saved(request, began, saved))

    def _decoded(self, request: _Request, seconds: float) -> None:
        request.facts.decode_seconds = seconds
        self._part(request)

    def _saved(self, request: _Request, began: float, saved: Saved) -> None:
        facts = request.facts
        facts.save_seconds = self._loop.time() - began
        facts.stored_tokens = saved.num_tokens
        facts.stored_bytes = saved.nbytes
        facts.stored_kv_bytes = self.store.layout.nbytes(sum(saved.by_location.values()))
        self._part(request)

    def _part(self, request: _Request) -> None:
        """One of the two things that an answer waits for is done: its tokens, or its save."""
        if request.life != self.life:
            return
        request.open_parts -= 1
        if request.open_parts:
            return
        del self._open[id(request)]
        request.facts.completion_tokens = request.max_tokens
        self._running -= 1
        if self._waiting:
            self._begin(self._waiting.popleft())
        request.done(Answer(request.ttft, self._loop.time() - request.sent, request.facts))

    # --- reports -----------------------------------------------------------------------------------------------------

    def changed(self, change: CacheChange) -> None:
        """A change of the store's contents, on its way to the controller."""
        self.changes.add(change.op, change.location, change.key.hash)
        if not self._reporting:
            self._reporting = True
            self._loop.after(self._report_seconds, self._flush)

    def _flush(self) -> None:
        self._reporting = False
        if self.alive:
            self._report(self)

    # --- faults ------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Everything under way is lost, and so is what is not in persistent tiers."""
        self.alive = False
        self.life += 1
        self.store.die()
        lost = list(self._open.values())
        self._unread = deque()
        self._open.clear()
        self._waiting.clear()
        self._running = 0
        self.changes = ChangeQueue(2**62)
        for request in lost:
            request.done(self._down())
