"""Random numbers of a training batch: those of sample i are a function of seeds[i] and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normal(seeds: Sequence[int], like: Tensor, rng_stream: int = 0) -> Tensor:
    """Standard normal values of the shape of `like` (B, ...), float32 on its device, sample i's from seeds[i].

    stream: another number gives other values for the same seeds. Drawn on the CPU: the same on every device.
    """
    return _stack(seeds, rng_stream, lambda generator: torch.randn(like.shape[1:], generator=generator)).to(like.device)


def uniform(seeds: Sequence[int], device: torch.device, rng_stream: int = 0) -> Tensor:
    """One number in [0, 1) a sample, float32 (B,); see `normal`."""
    return _stack(seeds, rng_stream, lambda generator: torch.rand((), generator=generator)).to(device)


def timesteps(seeds: Sequence[int], device: torch.device, count: int, rng_stream: int = 0) -> Tensor:
    """One of 0 ... count - 1 a sample, all alike likely, int64 (B,); see `normal`."""
    return (uniform(seeds, device, rng_stream) * count).long().clamp_max(count - 1)


def _stack(seeds: Sequence[int], rng_stream: int, draw) -> Tensor:
    # an odd multiplier maps 64-bit numbers one to one, so no two (seed, stream) of a sample share a generator's seed
    drawn = [draw(torch.Generator().manual_seed((seed + rng_stream * 0x9E3779B97F4A7C15) % 2**64)) for seed in seeds]
    return torch.stack(drawn)
