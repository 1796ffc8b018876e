"""A stand-in for vLLM's engine: blocks, chunked prefill, preemption, aborts, one or several ranks.

It calls the connector's two halves in the order in which vLLM does, and knows the KV of every token by itself: a
function of the token and of all before it. What the halves leave in the blocks is compared with that.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from lmcache_kit_vllm.blocks import LayerBlocks, PackedBlocks, TokenBlocks, bits_of, slots
from lmcache_kit_vllm.cache_thread import CacheThread
from lmcache_kit_vllm.options import ConnectorOptions
from lmcache_kit_vllm.plan import Report
from lmcache_kit_vllm.rank_side import HostCopier, RankSide, head_share
from lmcache_kit_vllm.requests import SavePolicy
from lmcache_kit_vllm.scheduler_side import SchedulerSide
from lmcache_kit_vllm.staging import Staging

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.engine import EngineInfo
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.kv.layout import KVLayout

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def true_kv(tokens: list[int], layout: KVLayout) -> np.ndarray:
    """The bits of the KV of ``tokens``, ``[L, P, T, H, D]`` integers: each depends on all tokens up to it."""
    integer = np.dtype(f"i{layout.np_dtype.itemsize}")
    kv = np.empty(layout.shape(len(tokens)), dtype=integer)
    state = 17
    for index, token in enumerate(tokens):
        state = (state * 1_000_003 + token + 1) % (2**61 - 1)
        shape = (layout.num_layers, layout.planes, layout.num_kv_heads, layout.head_dim)
        # Any bits at all, those of NaN among them.
        kv[:, :, index] = np.random.default_rng(state).integers(0, 2**15, shape).astype(integer)
    return kv


@dataclass(eq=False)
class Request:
    """vLLM's request, as far as the connector looks at it."""

    request_id: str
    all_token_ids: list[int]
    num_prompt_tokens: int
    max_tokens: int
    lora_request: object = None
    mm_features: list = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    ran: bool = False
    preempted: bool = False
    loaded: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def generated(self) -> int:
        return self.num_tokens - self.num_prompt_tokens


def permuted(block_size: int, head_dim: int) -> torch.Tensor:
    """An arrangement of a block's elements, as packing.element_places would find it."""
    count = 2 * block_size * head_dim
    order = np.random.default_rng(block_size * head_dim).permutation(count)
    return torch.from_numpy(order).view(2, block_size, head_dim)


class Rank:
    """One rank's blocks, and its half of the connector."""

    def __init__(self, engine: Engine, rank: int) -> None:
        layout, self.share = engine.layout, head_share(engine.layout, rank, engine.ranks)
        heads, kernel = self.share.stop - self.share.start, engine.kernel_block_size
        shape = (engine.num_blocks * engine.block_size // kernel, heads, kernel, layout.planes * layout.head_dim)
        self.layers: list[LayerBlocks] = []
        for _ in range(layout.num_layers):
            cache = torch.zeros(shape, dtype=TORCH[layout.dtype], device=engine.device)
            if engine.packed:
                self.layers.append(PackedBlocks(cache, permuted(kernel, layout.head_dim)))
            else:
                self.layers.append(TokenBlocks(cache, layout.planes))
        copier = (engine.make_copier or HostCopier)(self.layers)
        self.half = RankSide(copier, layout, self.share, block_size=engine.block_size, layerwise=engine.layerwise)


class Engine:
    """The scheduler and its ranks.

    Args:
        settings: the instance's configuration.
        layout: of the model's KV.
        block_size, num_blocks: of the scheduler.
        kernel_block_size: tokens in a block of the tensors; ``block_size`` when None.
        ranks: tensor parallel ranks.
        batch: most tokens in a step.
        packed: whether blocks are arranged as on CPUs.
        layerwise: whether layers are announced.
        prefix_caching: whether the engine keeps prefixes of its own, by whole blocks.
        staging: bytes of staging memory.
        device: where the blocks are; on a GPU nothing waits for it before the end of :meth:`run`.
        pause: GPU clock cycles that each layer's attention takes.
        seed: of its choices.
    """

    def __init__(
        self,
        settings: dict,
        layout: KVLayout,
        *,
        block_size: int = 4,
        num_blocks: int = 64,
        kernel_block_size: int | None = None,
        ranks: int = 1,
        batch: int = 16,
        packed: bool = False,
        layerwise: bool = True,
        prefix_caching: bool = False,
        staging: int = 2**20,
        seed: int = 0,
        options: ConnectorOptions | None = None,
        make_copier=None,
        device: str = "cpu",
        pause: int = 0,
    ) -> None:
        self.device, self.pause = device, pause
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        self.layout, self.ranks, self.packed, self.layerwise = layout, ranks, packed, layerwise
        self.block_size, self.num_blocks, self.batch = block_size, num_blocks, batch
        self.kernel_block_size = kernel_block_size or block_size
        self.make_copier = make_copier
        self.random = random.Random(seed)
        config = instance_config(settings)
        info = EngineInfo(
            model="m",
            fingerprint="engine-under-test",
            layout=layout,
            max_model_len=4096,
            eos_token_ids=frozenset(),
            vocab_size=2**20,
        )
        self.cache = CacheThread(config, info)
        self.staging = Staging(staging, layout)
        self.scheduler = SchedulerSide(
            self.cache,
            self.staging,
            SavePolicy(config.hash_spec, config.save_decode_cache),
            options or ConnectorOptions(patience=60.0),  # tests of a slow cache have options of their own
            block_size=block_size,
            ranks=ranks,
            loads=True,
            saves=True,
            clock=WallClock(),
        )
        self.parts = [Rank(self, rank) for rank in range(ranks)]
        self.free = list(range(num_blocks))
        self.random.shuffle(self.free)
        self.prefix_caching = prefix_caching
        self.kept: dict[tuple[int, ...], int] = {}
        self.uses: Counter[int] = Counter()  # of blocks: by requests, and as kept prefixes
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.numbers = itertools.count()
        self.hits: dict[str, int] = {}
        self.steps = 0

    # --- what a user does --------------------------------------------------------------------------------------------

    def add(self, prompt: list[int], max_tokens: int = 1, **more) -> Request:
        request = Request(f"r{next(self.numbers)}", list(prompt), len(prompt), max_tokens, **more)
        self.waiting.append(request)
        return request

    def abort(self, request: Request) -> None:
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
                self._finish(request)

    def preempt(self, request: Request) -> None:
        """Take a running request's blocks; it waits to be computed again."""
        self.running.remove(request)
        self._free(request)
        request.computed, request.preempted = 0, True
        self.waiting.insert(0, request)

    def run(self, most: int = 2000) -> None:
        for _ in range(most):
            if not self.waiting and not self.running and not self.scheduler.is_waiting_for_ranks:
                assert not self.wrong.item(), f"{self.wrong.item()} elements are not what was computed"
                return
            self.step()
        raise AssertionError("the engine makes no progress")

    def settle(self) -> None:
        """Wait until the cache has stored what it was given."""
        import concurrent.futures

        while self.cache._work:
            concurrent.futures.wait(list(self.cache._work), 5)

    def close(self) -> None:
        for part in self.parts:
            part.half.close()
        self.scheduler.close()

    # --- a step ------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        self.steps += 1
        budget, scheduled = self.batch, {}
        new, cached = [], SimpleNamespace(req_ids=[], new_block_ids=[], resumed_req_ids=set(), num_computed_tokens=[])
        for request in list(self.running):
            count = min(budget, request.num_tokens - request.computed)
            if count <= 0 or request not in self.running:
                continue
            given = self._grow(request, request.computed + count)
            if given is None:
                continue
            budget -= count
            scheduled[request.request_id] = count
            cached.req_ids.append(request.request_id)
            cached.new_block_ids.append((given,) if given else None)
            cached.num_computed_tokens.append(request.computed)
        for request in list(self.waiting):
            if budget <= 0:
                break
            own = self._own_prefix(request)
            matched = self.scheduler.matched(request, own)
            if matched is None:
                continue
            count = min(budget, request.num_tokens - own - matched)
            if not self._allocate(request, own, own + matched + count):
                break
            self.waiting.remove(request)
            self.running.append(request)
            self.scheduler.allocated(request, matched)
            request.loaded = matched
            self.hits[request.request_id] = self.hits.get(request.request_id, 0) + matched
            request.computed = own + matched
            scheduled[request.request_id] = count
            budget -= count
            if request.ran and request.preempted:
                cached.req_ids.append(request.request_id)
                cached.resumed_req_ids.add(request.request_id)
                cached.new_block_ids.append((list(request.blocks),))
                cached.num_computed_tokens.append(request.computed)
            else:
                new.append(
                    SimpleNamespace(
                        req_id=request.request_id,
                        block_ids=(list(request.blocks),),
                        num_computed_tokens=request.computed,
                    )
                )
            request.ran = True
        output = SimpleNamespace(scheduled_new_reqs=new, scheduled_cached_reqs=cached, num_scheduled_tokens=scheduled)
        plan = self.scheduler.plan(output)
        report = self._execute(plan, scheduled)
        for request in list(self.running):
            if request.request_id not in scheduled:
                continue
            request.computed += scheduled[request.request_id]
            if request.computed == request.num_tokens:
                request.all_token_ids.append((sum(request.all_token_ids) * 31 + 7) % 1000)  # the model's greedy answer
                if request.generated >= request.max_tokens:
                    self.running.remove(request)
                    self._keep(request)
                    self._finish(request)
        self.scheduler.reported(report)

    def _execute(self, plan, scheduled: dict[str, int]) -> Report | None:
        for part in self.parts:
            part.half.begin(plan)
            if plan.loads:
                part.half.load()
        computing = [request for request in self.running if request.request_id in scheduled]
        truths = {id(request): true_kv(request.all_token_ids, self.layout) for request in computing}
        for layer in range(self.layout.num_layers):
            for part in self.parts:
                if self.layerwise:
                    part.half.before_layer(layer)
                for request in computing:
                    count = scheduled[request.request_id]
                    self._compute(part, layer, request, truths[id(request)], request.computed + count)
                if self.layerwise:
                    part.half.after_layer(layer)
        report = None
        for part in self.parts:
            if not plan.loads:
                part.half.load()
            part.half.end()
            assert not part.half.take_failed_blocks()
            own = part.half.take_report()
            if own is not None:
                report = own if report is None else report.plus(own)
        return report

    def _compute(self, part: Rank, layer: int, request: Request, truth: np.ndarray, stop: int) -> None:
        """The attention of one layer: the new tokens' KV is written, and all before it read."""
        share = slice(part.share.start, part.share.stop)
        block, offset = self._places(request, 0, stop)
        mine = torch.from_numpy(np.ascontiguousarray(truth[layer, :, :stop, share]))
        if self.device != "cpu":
            block, offset, mine = (
                each.pin_memory().to(self.device, non_blocking=True) for each in (block, offset, mine)
            )
            torch.cuda._sleep(self.pause)
        start = request.computed
        part.layers[layer].write(block[start:], offset[start:], mine[:, start:])
        read = part.layers[layer].read(block, offset)
        self.wrong += (read != mine).sum()

    def _places(self, request: Request, start: int, stop: int):
        return slots(request.blocks, start, stop, block_size=self.block_size, kernel_block_size=self.kernel_block_size)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _own_prefix(self, request: Request) -> int:
        if not self.prefix_caching:
            return 0
        own = 0
        while own + self.block_size < request.num_tokens:
            if tuple(request.all_token_ids[: own + self.block_size]) not in self.kept:
                break
            own += self.block_size
        return own

    def _allocate(self, request: Request, own: int, stop: int) -> bool:
        shared = [
            self.kept[tuple(request.all_token_ids[:end])] for end in range(self.block_size, own + 1, self.block_size)
        ]
        wanted = -(-stop // self.block_size) - len(shared)
        self.uses.update(shared)
        if wanted > len(self.free):
            self.forget()
        if wanted > len(self.free):
            self._unuse(shared)
            return False
        request.blocks = shared + [self._taken() for _ in range(wanted)]
        return True

    def _grow(self, request: Request, stop: int) -> list[int] | None:
        """Blocks for the request's next tokens; others are preempted for it, the last first; None when it is itself."""
        wanted = -(-stop // self.block_size) - len(request.blocks)
        if wanted > len(self.free):
            self.forget()
        while wanted > len(self.free):
            victim = self.running[-1]
            self.preempt(victim)
            if victim is request:
                return None
        given = [self._taken() for _ in range(wanted)]
        request.blocks += given
        return given

    def _taken(self) -> int:
        block = self.free.pop()
        self.uses[block] += 1
        ratio = self.block_size // self.kernel_block_size
        for part in self.parts:
            for layer in part.layers:
                bits_of(layer.cache)[block * ratio : (block + 1) * ratio] = -1  # nobody may rely on what was there
        return block

    def _keep(self, request: Request) -> None:
        if not self.prefix_caching:
            return
        for end in range(self.block_size, request.computed + 1, self.block_size):
            prefix, block = tuple(request.all_token_ids[:end]), request.blocks[end // self.block_size - 1]
            if prefix not in self.kept:
                self.kept[prefix] = block
                self.uses[block] += 1

    def forget(self) -> None:
        """Lose the engine's own prefixes."""
        self._unuse(self.kept.values())
        self.kept.clear()

    def _free(self, request: Request) -> None:
        self._unuse(request.blocks)
        request.blocks = []

    def _unuse(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.uses[block] -= 1
            if not self.uses[block]:
                self.free.append(block)

    def _finish(self, request: Request) -> None:
        self.facts = self.scheduler.finished(request.request_id)
        self._free(request)
