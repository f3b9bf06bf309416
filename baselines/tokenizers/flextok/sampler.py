"""The rectified-flow sampler and its guidance, as functions of velocities; noise is handed in.

Velocity is noise minus clean, time 1 is pure noise (published flow_matching/pipelines.py and cfg_utils.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""From x (B, C, H, W) and time (1,) to velocities with the condition, and without it (None where nobody asked)."""


@dataclass(frozen=True)
class ProjectedGuidance:
    """Adaptive projected guidance (arXiv 2410.02416) with the published values.

    momentum: of the running sum of differences over the steps; norm_threshold: largest L2 norm of it, an image;
    eta: how much of the part parallel to the conditional velocity stays.
    """

    momentum: float = -0.5
    eta: float = 0.0
    norm_threshold: float = 2.5


@dataclass(frozen=True)
class Sampling:
    """How to sample; the defaults are the published readme's.

    guidance_scale: 1 means no guidance, and no unconditional pass. projection: None for plain guidance.
    """

    steps: int = 20
    guidance_scale: float = 7.5
    projection: ProjectedGuidance | None = ProjectedGuidance()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: expected at least 1")

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1


def plain_guidance(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """uncond + scale (cond - uncond)."""
    return uncond + scale * (cond - uncond)


def projected_guidance(
    cond: Tensor, uncond: Tensor, scale: float, settings: ProjectedGuidance, previous: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Guided velocity (B, C, H, W), and the running difference to hand in at the next step as `previous` (first: None).

    Every image for itself; the projection is computed in float64.
    """
    running = cond - uncond
    if previous is not None:
        running = running + settings.momentum * previous
    length = running.flatten(1).norm(dim=1)[:, None, None, None]
    difference = (running * (settings.norm_threshold / length).clamp(max=1)).double()
    direction = F.normalize(cond.double().flatten(1), dim=1).view_as(difference)
    parallel = (difference * direction).sum((1, 2, 3), keepdim=True) * direction
    update = (difference - parallel).to(cond.dtype) + settings.eta * parallel.to(cond.dtype)
    return cond + (scale - 1) * update, running


def sample(predict: Predict, noise: Tensor, sampling: Sampling) -> Tensor:
    """From noise (B, C, H, W) to clean latents by Euler steps at times 1, ..., 2 / steps, 1 / steps."""
    x, running = noise, None
    for step in range(sampling.steps, 0, -1):
        cond, uncond = predict(x, torch.full((1,), step / sampling.steps, device=x.device))
        if uncond is None:
            velocity = cond
        elif sampling.projection is None:
            velocity = plain_guidance(cond, uncond, sampling.guidance_scale)
        else:
            velocity, running = projected_guidance(cond, uncond, sampling.guidance_scale, sampling.projection, running)
        x = x - velocity / sampling.steps
    return x


def image_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal values (shape) from an image's own seed, drawn on the CPU: the same for every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
