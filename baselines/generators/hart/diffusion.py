"""The diffusion that samples residuals of tokens: cosine schedule, few spaced steps, learned variance.

Facts from the published hart/modules/diffusion (OpenAI's improved diffusion by way of MAR). Tables are float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TIMESTEPS = 1000
RESIDUAL_SCALE = 0.6
"""By which a sample is multiplied (`vae_scale` of the published diffloss.py)."""

_MAX_BETA = 0.999

Predict = Callable[[Tensor, int], Tensor]
"""From noisy residuals (N, C) and a timestep to (N, 2 C): noise, and variance as a place between its bounds."""


@dataclass(frozen=True)
class Schedule:
    """The coefficients of each step, in sampling order, from the noisiest.

    timesteps: what the network is told. recip, recipm1: x_0 = recip x - recipm1 noise. from_clean, from_noisy: mean of
    the next x from x_0 and x. log_low, log_high: bounds of the log variance.
    """

    timesteps: tuple[int, ...]
    recip: tuple[float, ...]
    recipm1: tuple[float, ...]
    from_clean: tuple[float, ...]
    from_noisy: tuple[float, ...]
    log_low: tuple[float, ...]
    log_high: tuple[float, ...]


def spaced(steps: int) -> list[int]:
    """Evenly spaced timesteps from 0 to 999, rising; halves are rounded to even, and the places are summed up."""
    stride, place, chosen = (TIMESTEPS - 1) / (steps - 1) if steps > 1 else 1.0, 0.0, set()
    for _ in range(steps):
        chosen.add(round(place))
        place += stride
    return sorted(chosen)


def schedule(steps: int) -> Schedule:
    """The coefficients for that many steps."""

    def remaining(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    times = [t / TIMESTEPS for t in range(TIMESTEPS + 1)]
    all_betas = [min(1 - remaining(b) / remaining(a), _MAX_BETA) for a, b in itertools.pairwise(times)]
    chosen = spaced(steps)
    kept = np.cumprod(1.0 - np.array(all_betas, dtype=np.float64))[chosen]
    betas = 1 - kept / np.append(1.0, kept[:-1])
    products = np.cumprod(1.0 - betas)
    before = np.append(1.0, products[:-1])
    variance = betas * (1.0 - before) / (1.0 - products)
    low = np.log(np.append(variance[1], variance[1:])) if len(variance) > 1 else np.log(betas)
    columns = (
        np.sqrt(1.0 / products),
        np.sqrt(1.0 / products - 1),
        betas * np.sqrt(before) / (1.0 - products),
        (1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - products),
        low,
        np.log(betas),
    )
    return Schedule(tuple(chosen[::-1]), *(tuple(column[::-1].tolist()) for column in columns))


def sample(predict: Predict, start: Tensor, noise: Callable[[int], Tensor], steps: Schedule) -> Tensor:
    """Residuals (N, C), float32, from noise `start` (N, C) and that of each step, which counts from 0."""
    x, channels = start, start.shape[1]
    for step, timestep in enumerate(steps.timesteps):
        predicted, place = predict(x, timestep).float().split(channels, 1)
        place = (place + 1) / 2
        log_variance = place * steps.log_high[step] + (1 - place) * steps.log_low[step]
        clean = (steps.recip[step] * x - steps.recipm1[step] * predicted).clamp(-1, 1)
        mean = steps.from_clean[step] * clean + steps.from_noisy[step] * x
        drawn = noise(step)  # drawn at the last step too, where it does not count
        x = mean if step == len(steps.timesteps) - 1 else mean + torch.exp(0.5 * log_variance) * drawn
    return x * RESIDUAL_SCALE
