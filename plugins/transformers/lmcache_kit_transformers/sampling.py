"""The next token from the model's logits."""

from __future__ import annotations

import torch

from lmcache_kit.contracts import SamplingParams

__all__ = ["Sampler"]


class Sampler:
    """Chooses tokens for one sequence; with a seed, the same logits give the same tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generator = torch.Generator()  # on the CPU, so that the choice does not depend on the device
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """A token id from ``[vocabulary]`` logits."""
        params = self._params
        if params.temperature == 0 or params.top_k == 1:
            return int(logits.argmax())
        scores, order = torch.sort(logits.float().cpu() / params.temperature, descending=True, stable=True)
        if params.top_k > 0:
            scores = scores[: params.top_k]
        chances = torch.softmax(scores, dim=0)
        if params.top_p < 1:
            # Keep a token when those before it do not reach top_p yet; the first always stays.
            kept = int((torch.cumsum(chances, 0) - chances < params.top_p).sum())
            chances = chances[: max(kept, 1)]
        return int(order[int(torch.multinomial(chances, 1, generator=self._generator))])
