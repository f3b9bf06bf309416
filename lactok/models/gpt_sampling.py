"""From a GPT's logits to an id: guidance, filters, and a draw whose randomness is one number an id.

An id is drawn by the inverse of the distribution function at that number. A prompt's numbers come from its own seed, on
the CPU, all at once: they are the same whatever the batch, order, neighbours or device. Settings and
filters as published (FoundationVision/LlamaGen, autoregressive/models/generate.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-5
"""The least that logits are divided by."""


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn; the defaults are those of LlamaGen's script for text.

    guidance_scale: s in l_u + s (l_c - l_u) of unconditional and conditional logits; 1 or less means no guidance.
    guidance_interval: the last step after the prefix, from 0, that is guided; -1: all are. The first id always is.
    temperature: divides the logits; 0 is as 1e-5. top_k: how many of the largest logits stay, ties of the last one,
    too; 0: all. top_p: the most probable ids stay until their sum passes it, the one that does included; 1: all.
    """

    guidance_scale: float = 7.5
    guidance_interval: int = -1
    temperature: float = 1.0
    top_k: int = 1000
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: expected temperature >= 0, top_k >= 0 and 0 < top_p <= 1")
        if not math.isfinite(self.guidance_scale) or not math.isfinite(self.temperature):
            raise ValueError(f"{self}: expected guidance_scale and temperature that are finite")

    @property
    def guided(self) -> bool:
        """Whether unconditional logits are needed."""
        return self.guidance_scale > 1


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Guided logits of two of the same shape."""
    return unconditional + (conditional - unconditional) * scale


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """float32 (B, V), summing to 1, of logits float32 (B, V) after temperature, top-k and then top-p."""
    logits = logits / max(sampling.temperature, COLDEST)
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        cut = torch.empty_like(before, dtype=torch.bool).scatter(1, order, before > sampling.top_p)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits.softmax(-1)


def draw(probability: Tensor, numbers: Tensor) -> Tensor:
    """Ids int64 (B,): the first whose cumulated probability is above the number; none has probability 0.

    probability: (B, V), not negative, not all 0; numbers: float64 (B,) in [0, 1).
    """
    reached = probability.cumsum(-1, dtype=torch.float64)
    wanted = numbers[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, wanted, right=True)[:, 0].clamp(max=probability.shape[-1] - 1)


def prompt_numbers(seed: int, count: int) -> Tensor:
    """The numbers of one prompt's ids: float64 (count,) in [0, 1), on the CPU, from its seed alone."""
    return torch.rand(count, dtype=torch.float64, device="cpu", generator=torch.Generator().manual_seed(seed))
