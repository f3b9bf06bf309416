"""Samplers of the latent decoder, as pure functions of a noise prediction: DDIM, Hyper-SD's one step, TLCM's few.

A sampler takes `predict(x, t)`, the noise in latents x (B, C, h, w) at the integer timestep t; the noises of each
image (B, draws, C, h, w); and the schedule. It gives the latents, float32. Whatever it draws is handed in, so that an
image's result follows from its own seed alone (`image_noise`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

Predict = Callable[[Tensor, int], Tensor]
"""Latents (B, C, h, w) and timestep to the noise in them, of the same shape."""

TLCM_GRID = (999, 874, 749, 624, 499, 374, 249, 124, 0)
"""linspace(999, 0, 9), the timesteps among which TLCM's and LacTok's published code chooses."""

TLCM_INDICES = {
    1: (0, 8),
    2: (0, 4, 8),
    3: (0, 4, 7, 8),
    4: (0, 2, 4, 7, 8),
    5: (0, 2, 4, 6, 7, 8),
    6: (0, 2, 4, 5, 6, 7, 8),
    7: (0, 2, 3, 4, 5, 6, 7, 8),
}
"""Places in TLCM_GRID by the number of steps (OPPO-Mente-Lab/TLCM, inference.py); the last, 0, is never evaluated."""

FIRST_TIMESTEP = 999
"""Where few-step samplers start, from pure noise: the last of 1000."""

DDIM_STEPS = 25
"""Of the rows without an accelerator in the paper's Table 4."""


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = alpha_t x_0 + sigma_t noise at integer t, of "scaled-linear" betas; the defaults are SDXL's.

    Betas run from beta_start to beta_end, linear in their square root, over `timesteps` timesteps; alpha_t is the
    square root of the product of all 1 - beta up to t, and alpha_t^2 + sigma_t^2 = 1.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha_t^2, float32 (timesteps,), on the CPU."""
        roots = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.timesteps, device="cpu")
        return torch.cumprod(1 - roots.square(), 0)

    def alpha_sigma(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, float32: scalars for an int, (B, 1, 1, 1) on its device for int64 timesteps (B,)."""
        if isinstance(t, Tensor):
            squared = self.alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1)
        else:
            squared = self.alphas_cumprod[t]
        return squared.sqrt(), (1 - squared).sqrt()

    def noised(self, clean: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """x_t of clean latents (B, C, h, w), float32; t: an int, or one for each image (B,)."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha * clean.float() + sigma * noise.float()

    def clean(self, x: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """x_0 of x_t (B, C, h, w) and the predicted noise, float32 whatever comes in.

        At t = 999 it divides by alpha = 0.068: an error in the noise grows 15-fold.
        """
        alpha, sigma = self.alpha_sigma(t)
        return (x.float() - sigma * noise.float()) / alpha


@dataclass(frozen=True)
class Sampler:
    """A sampler with its settings. draws: how many noises an image needs; evaluations: calls of the network."""

    run: Callable[[Predict, Tensor, NoiseSchedule], Tensor]
    draws: int
    evaluations: int

    def __call__(self, predict: Predict, noises: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Latents (B, C, h, w) of noises (B, draws, C, h, w)."""
        return self.run(predict, noises, schedule)


def ddim_sampler(steps: int = DDIM_STEPS) -> Sampler:
    """`ddim` of that many steps; raises ValueError for a number that the schedule does not have."""
    ddim_timesteps(steps)
    return Sampler(partial(ddim, steps=steps), draws=1, evaluations=steps)


def consistency_sampler(timesteps: Sequence[int]) -> Sampler:
    """`consistency` over those timesteps; (999,) is Hyper-SD's one step. Raises ValueError unless they fall."""
    timesteps = tuple(timesteps)
    falling = list(timesteps) == sorted(set(timesteps), reverse=True)
    if not timesteps or not falling or timesteps[0] > FIRST_TIMESTEP or timesteps[-1] < 0:
        raise ValueError(f"timesteps {timesteps}: expected one or more, falling, from {FIRST_TIMESTEP} to 0")
    return Sampler(partial(consistency, timesteps=timesteps), draws=len(timesteps), evaluations=len(timesteps))


def tlcm_timesteps(steps: int) -> tuple[int, ...]:
    """Timesteps that TLCM evaluates: (999, 499) for 2, (999, 499, 124) for 3. Raises ValueError beyond 1 to 7."""
    if steps not in TLCM_INDICES:
        raise ValueError(f"{steps} steps: TLCM's published grids have 1 to {max(TLCM_INDICES)}")
    return tuple(TLCM_GRID[i] for i in TLCM_INDICES[steps][:-1])


def ddim_timesteps(steps: int, timesteps: int = 1000) -> tuple[int, ...]:
    """Timesteps of `ddim`, "leading" spacing with offset 1: (961, 921, ..., 1) for 25. Raises ValueError."""
    if steps < 1 or (steps - 1) * (timesteps // steps) + 1 >= timesteps:
        raise ValueError(f"{steps} steps: expected 1 to {timesteps - 1}")
    return tuple(i * (timesteps // steps) + 1 for i in reversed(range(steps)))


def ddim(predict: Predict, noises: Tensor, schedule: NoiseSchedule, steps: int = DDIM_STEPS) -> Tensor:
    """Deterministic DDIM (arXiv 2010.02502, eta 0) as SDXL's scheduler configuration sets it up in diffusers.

    noises: (B, 1, C, h, w). After the last step stands alpha_0, not 1 (`set_alpha_to_one` is off there).
    """
    x = _draws(noises, 1)[0]
    stride = schedule.timesteps // steps
    for t in ddim_timesteps(steps, schedule.timesteps):
        noise = predict(x, t).float()
        x = schedule.noised(schedule.clean(x, noise, t), noise, max(t - stride, 0))
    return x


def consistency(predict: Predict, noises: Tensor, schedule: NoiseSchedule, timesteps: Sequence[int]) -> Tensor:
    """Few-step consistency sampling, as LacTok and TLCM publish it: predict x_0, noise it anew to the next timestep.

    noises: (B, len(timesteps), C, h, w), the first the pure noise that it starts from, unscaled. The result is the x_0
    of the last timestep.
    """
    first, *fresh = _draws(noises, len(timesteps))
    clean = schedule.clean(first, predict(first, timesteps[0]), timesteps[0])
    for t, noise in zip(timesteps[1:], fresh, strict=True):
        x = schedule.noised(clean, noise, t)
        clean = schedule.clean(x, predict(x, t), t)
    return clean


def one_step(predict: Predict, noises: Tensor, schedule: NoiseSchedule, timestep: int = FIRST_TIMESTEP) -> Tensor:
    """Hyper-SD's single evaluation, from pure noise (B, 1, C, h, w) to x_0."""
    return consistency(predict, noises, schedule, (timestep,))


def _draws(noises: Tensor, count: int) -> tuple[Tensor, ...]:
    """The noises (B, C, h, w) in the order of their use, float32. Raises ValueError for another number of them."""
    if noises.ndim != 5 or noises.shape[1] != count:
        raise ValueError(f"noises of shape {tuple(noises.shape)}, expected (B, {count}, C, h, w)")
    return noises.float().unbind(1)


def image_noise(seed: int, shape: tuple[int, ...], count: int) -> Tensor:
    """`count` standard normal draws (count, *shape) of one image, all from its own seed, on the CPU.

    The first k are the same for every count: an initial noise does not change with the number of steps.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])
