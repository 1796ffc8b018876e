"""One completion from tokens to tokens: cached prefix in, engine, text out, new KV saved.

The engine runs in one thread of its own and the event loop never waits for it. Requests start in the order they
came, at most ``max_num_seqs`` at a time; those under way take turns token by token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.engine import Engine, EngineInfo, EngineSequence
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError, UnavailableError
from lmcache_kit.instance.http.completion import Delta, GenerationFacts, GenerationRequest, Output
from lmcache_kit.instance.http.metrics import InstanceMetrics
from lmcache_kit.kv.layout import KVTensor

__all__ = ["Generator", "PrefixStore"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class PrefixStore(Protocol):
    """What generation needs of ``KVStore``."""

    async def load_prefix(self, tokens: Sequence[int], *, limit: int | None = None) -> Any: ...

    async def save(self, tokens: Sequence[int], kv: KVTensor, *, start: int = 0) -> Any: ...


class Generator:
    """Runs completions on one engine.

    Args:
        engine: called from one thread only, which this object owns; the caller closes it afterwards.
        store: where prefixes are looked for and saved.
        chunk_size: tokens per stored chunk; the engine prefills in blocks of this size.
        metrics: counts what happens.
        clock: for durations.
        save_decode_cache: also save the KV of output tokens.
        max_num_seqs: most requests worked on at the same time.
    """

    def __init__(
        self,
        engine: Engine,
        store: PrefixStore,
        *,
        chunk_size: int,
        metrics: InstanceMetrics,
        clock: Clock,
        save_decode_cache: bool = False,
        max_num_seqs: int = 16,
    ) -> None:
        self._engine = engine
        self._store = store
        self._chunk_size = chunk_size
        self._metrics = metrics
        self._clock = clock
        self._save_decode_cache = save_decode_cache
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._slots = asyncio.Semaphore(max_num_seqs)
        self._saves: set[asyncio.Task[int]] = set()
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""
        return await self._call(self._engine.tokenize, text, add_special_tokens=add_special_tokens)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``, special ones included. Raises InvalidRequestError for ids outside the vocabulary."""
        self._check_vocabulary(tokens)
        return await self._call(self._engine.detokenize, tokens, skip_special_tokens=False)

    async def token_texts(self, tokens: Sequence[int]) -> list[str]:
        """The vocabulary entry of each token."""
        return await self._call(lambda: [self._engine.token_text(token) for token in tokens])

    def check(self, request: GenerationRequest) -> GenerationRequest:
        """The request. Raises InvalidRequestError when this engine cannot serve it."""
        info, length = self._engine.info, len(request.tokens)
        if not length:
            raise InvalidRequestError("the prompt is empty: it needs at least one token")
        self._check_vocabulary(request.tokens)
        if length + request.max_tokens > info.max_model_len:
            raise InvalidRequestError(
                f"this model's maximum context length is {info.max_model_len} tokens, but the request has "
                f"{length} tokens of prompt and asks for {request.max_tokens} more",
                hint="shorten the prompt, lower max_tokens, or start the instance with a larger --max-model-len",
            )
        return request

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Pieces of the completion as they come; the last one carries a ``finish_reason``.

        Closing the iterator, or cancelling the task that reads it, ends the work after the token being computed.
        """
        facts = GenerationFacts(prompt_tokens=len(request.tokens))
        arrival = self._clock.now()
        with self._metrics.waiting.track_inprogress():
            await self._slots.acquire()
        try:
            facts.queue_seconds = self._clock.now() - arrival
            with self._metrics.running.track_inprogress():
                async with contextlib.aclosing(self._run(request, facts, arrival)) as pieces:
                    async for piece in pieces:
                        yield piece
            self._metrics.finished(facts, self._clock.now() - arrival)
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.aborted("abort")
            raise
        except Exception:
            self._metrics.aborted("error")
            raise
        finally:
            self._slots.release()

    async def close(self) -> None:
        """Wait for saves under way and for the engine's current step, then stop the engine's thread; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._saves:
            await asyncio.wait(self._saves)
        # The thread runs one call at a time, so when this one is done the others are.
        await asyncio.get_running_loop().run_in_executor(self._thread, _nothing)
        self._thread.shutdown(wait=False)

    async def _run(
        self, request: GenerationRequest, facts: GenerationFacts, arrival: float
    ) -> AsyncGenerator[Delta, None]:
        tokens = request.tokens
        prefix = await self._load(tokens, facts)
        start = partial(
            self._engine.start,
            tokens,
            prefix=prefix,
            prefill_block=self._chunk_size,
            sampling=request.sampling,
        )
        sequence, facts.start_seconds = await self._call(self._timed, start)
        save: asyncio.Task[int] | None = None
        try:
            token, facts.prefill_seconds = await self._call(self._timed, sequence.prefill)
            facts.ttft_seconds = self._clock.now() - arrival
            output = Output(self._engine, request, facts)
            # Decoding text calls the tokenizer, which belongs to the engine's thread like the rest of the engine.
            text = await self._call(output.push, token)
            if facts.finish_reason is None:
                yield Delta(text, output.take(), facts)
                text = ""
            kv_start = self._boundary(facts.cached_tokens)
            kv, facts.copy_seconds = await self._call(self._timed, partial(sequence.kv, kv_start, len(tokens)))
            save = self._save(tokens, kv, kv_start, facts)
            del kv
            while facts.finish_reason is None:
                text, seconds = await self._call(self._timed, partial(self._decode, sequence, output))
                facts.decode_seconds += seconds
                if facts.finish_reason is None:
                    yield Delta(text, output.take(), facts)
                    text = ""
            facts.stored_tokens = await asyncio.shield(save)
            if self._save_decode_cache and len(output.tokens) > 1:
                facts.stored_tokens += await self._save_output(sequence, tokens, output.tokens, facts)
            yield Delta(text, output.take(), facts)
        finally:
            # Shielded: a cancelled request must still free its KV, in the engine's thread.
            await asyncio.shield(self._release(sequence))

    async def _load(self, tokens: list[int], facts: GenerationFacts) -> KVTensor | None:
        # The last prompt token is always computed: its output is the first token of the answer.
        begin = self._clock.now()
        try:
            loaded = await self._store.load_prefix(tokens, limit=len(tokens) - 1)
        except LMCacheKitError as error:
            log.warning("no cached prefix is used: %s", error.detail)
            return None
        except Exception:  # a storage plugin may raise anything; the prompt can still be computed
            log.exception("no cached prefix is used")
            return None
        finally:
            facts.load_seconds = self._clock.now() - begin
        facts.cached_tokens = loaded.num_tokens
        for hit in loaded.hits:
            held = facts.cached_tokens_by_location
            held[hit.location] = held.get(hit.location, 0) + hit.num_tokens
            facts.codecs[hit.codec] = facts.codecs.get(hit.codec, 0) + 1
            facts.loaded_bytes += hit.stored_bytes
        facts.loaded_kv_bytes = loaded.num_tokens * self._engine.info.layout.bytes_per_token
        self._metrics.retrieved(len(tokens), loaded.num_tokens, facts.load_seconds)
        kv: KVTensor | None = loaded.kv if loaded.num_tokens else None
        return kv

    def _save(self, tokens: Sequence[int], kv: KVTensor, start: int, facts: GenerationFacts) -> asyncio.Task[int]:
        """Save in the background; the task gives the number of tokens stored, and never fails."""
        task = asyncio.create_task(self._save_now(tokens, kv, start, facts), name="save KV")
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        return task

    async def _save_now(self, tokens: Sequence[int], kv: KVTensor, start: int, facts: GenerationFacts) -> int:
        begin = self._clock.now()
        try:
            result = await self._store.save(tokens, kv, start=start)
        except LMCacheKitError as error:
            log.warning("the KV of %d tokens is not stored: %s", len(tokens) - start, error.detail)
            return 0
        except Exception:  # as above: the answer stands without being stored
            log.exception("the KV of %d tokens is not stored", len(tokens) - start)
            return 0
        for problem in result.errors:
            log.warning("some KV is not stored: %s", problem)
        seconds = self._clock.now() - begin
        self._metrics.stored(result.num_tokens, seconds)
        facts.save_seconds += seconds
        facts.stored_bytes += result.nbytes
        facts.stored_kv_bytes += sum(result.by_location.values()) * self._engine.info.layout.bytes_per_token
        return int(result.num_tokens)

    async def _save_output(
        self, sequence: EngineSequence, prompt: list[int], output: list[int], facts: GenerationFacts
    ) -> int:
        # The last token made was never fed back, so it has no KV.
        tokens = prompt + output[:-1]
        start = self._boundary(len(prompt))
        kv = await self._call(sequence.kv, start, len(tokens))
        return await asyncio.shield(self._save(tokens, kv, start, facts))

    async def _release(self, sequence: EngineSequence) -> None:
        with contextlib.suppress(UnavailableError):  # closing the engine frees its sequences too
            await self._call(sequence.close)

    def _boundary(self, token: int) -> int:
        return token - token % self._chunk_size

    def _timed(self, work: Callable[[], R]) -> tuple[R, float]:
        begin = self._clock.now()
        return work(), self._clock.now() - begin

    @staticmethod
    def _decode(sequence: EngineSequence, output: Output) -> str:
        return output.push(sequence.decode())

    async def _call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._closed:
            raise UnavailableError("the instance is shutting down")
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))

    def _check_vocabulary(self, tokens: Sequence[int]) -> None:
        size = self._engine.info.vocab_size
        if tokens and not (min(tokens) >= 0 and max(tokens) < size):
            wrong = next(token for token in tokens if not 0 <= token < size)
            raise InvalidRequestError(f"token id {wrong} is outside of the vocabulary, 0 to {size - 1}")


def _nothing() -> None:
    return
