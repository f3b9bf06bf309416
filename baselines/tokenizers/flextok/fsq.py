"""Finite scalar quantization (arXiv 2309.15505, appendix A.1): each number rounds to one of its levels; no codebook.

Computed in float32 whatever the dtype around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MARGIN = 1e-3
"""By how much the range exceeds the outermost levels, relative (`eps` of the published code)."""


def quantize(latents: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Numbers (..., D) to their codes in [-1, 1], float32 (..., D), and ids, int64 (...), first number fastest.

    The gradient passes the rounding as if it were not there.
    """
    bounded = bound(latents.float(), levels)
    rounded = bounded.round()
    half = _half(levels, latents.device)
    codes = (bounded + (rounded - bounded).detach()) / half
    ids = ((rounded.long() + half) * _basis(levels, latents.device)).sum(-1)
    return codes, ids


def bound(latents: Tensor, levels: Sequence[int]) -> Tensor:
    """Numbers (..., D) squeezed by tanh into the range whose integers are the levels, around 0 (or -1/2 if even)."""
    counts = torch.tensor(levels, dtype=torch.float32, device=latents.device)
    half = (counts - 1) * (1 + MARGIN) / 2
    offset = torch.where(counts % 2 == 0, 0.5, 0.0)
    return (latents + (offset / half).atanh()).tanh() * half - offset


def codes_of(ids: Tensor, levels: Sequence[int]) -> Tensor:
    """Codes in [-1, 1], float32 (..., D), of int64 ids (...) in [0, product of levels)."""
    half = _half(levels, ids.device)
    counts = torch.tensor(levels, device=ids.device)
    return ((ids.unsqueeze(-1) // _basis(levels, ids.device)) % counts - half) / half


def _half(levels: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([count // 2 for count in levels], device=device)


def _basis(levels: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([math.prod(levels[:i]) for i in range(len(levels))], device=device)
