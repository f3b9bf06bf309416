"""Show-o's sampler: masked image codes are filled in over a few steps, all positions in parallel (MaskGIT).

Every step draws all unknown codes and masks the least confident of them again (published models/modeling_showo.py,
`t2i_generate`, and models/sampling.py). The network is handed in as a function, the noise by a source, so that an
image's result follows from its own seed alone (`seeded_noise`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baselines.generators.showo.prompting import MASKED

Predict = Callable[[Tensor], Tensor]
"""From a canvas (B, N) of codes, MASKED where unknown, to logits after guidance, float32 (B, N, codes)."""


@dataclass(frozen=True)
class Draws:
    """The noise of one step. exponential: Exp(1), (B, N, codes), by which codes are drawn; uniform: in [0, 1), (B, N),
    for the choice of what is masked again."""

    exponential: Tensor
    uniform: Tensor


Noise = Callable[[int], Draws]
"""The noise of a step, called once for each in order."""

_TINY = 1e-20  # the published floor of a logarithm's argument
_FLOOR = 1e-6  # the least share that schedules other than the cosine leave masked


@dataclass(frozen=True)
class Sampling:
    """How to sample; the defaults are those of the 512-pixel checkpoint (the published readme).

    guidance_scale: g of (1 + g) conditional - g unconditional logits, so that 5 is 6 in the usual convention; 0 means
    none. temperature: of the noise that chooses what is masked again; codes are always drawn at 1.
    schedule: how the masked share falls: "cosine", "linear", "pow<x>" or "sigmoid"; schedule_settings: of the sigmoid,
    start (-3), end (3), tau (1) and clip_min (1e-6).
    """

    steps: int = 50
    guidance_scale: float = 5.0
    temperature: float = 1.0
    schedule: str = "cosine"
    schedule_settings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: expected at least 1")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale {self.guidance_scale}: expected 0 (none) or more")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature}: expected 0 or more")
        masked_share(self.schedule, 0.5, self.schedule_settings)  # raises for one that is unknown

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 0

    def ratio(self, step: int) -> float:
        """The share of steps that is done after `step`, which counts from 0."""
        return (step + 1) / self.steps

    def temperature_at(self, step: int) -> float:
        """That of a step: the published code multiplies in place, so it falls as a product."""
        return self.temperature * math.prod(1.0 - self.ratio(i) for i in range(step + 1))


@dataclass(frozen=True)
class Step:
    """What a step gave. probabilities: (B, N, codes); codes: int64 (B, N), drawn or known before; mask_len: (B, 1);
    masking: bool (B, N), true where masked again; canvas: (B, N), for the next step."""

    probabilities: Tensor
    codes: Tensor
    mask_len: Tensor
    masking: Tensor
    canvas: Tensor


def masked_share(schedule: str, ratio: float, settings: Mapping[str, float] | None = None) -> Tensor:
    """The share of positions that stays masked at `ratio` of the steps, a float32 scalar as published (the cosine's
    last is slightly negative). Raises ValueError for an unknown schedule or setting."""
    t, settings = torch.tensor(ratio, dtype=torch.float32), dict(settings or {})
    if schedule == "sigmoid":
        start, end = settings.pop("start", -3), settings.pop("end", 3)
        tau, least = settings.pop("tau", 1.0), settings.pop("clip_min", _FLOOR)
        low, high = (torch.sigmoid(torch.tensor(value / tau)) for value in (start, end))
        share = (high - torch.sigmoid((t * (end - start) + start) / tau)) / (high - low)
        share = share.clip(least, 1.0)
    elif schedule == "cosine":
        share = torch.cos(t * math.pi * 0.5)
    elif schedule == "linear":
        share = (1 - t).clamp(_FLOOR, 1.0)
    elif schedule.startswith("pow") and _is_number(schedule[3:]):
        share = (1.0 - t ** float(schedule[3:])).clamp(_FLOOR, 1.0)
    else:
        raise ValueError(f"schedule {schedule!r}: expected cosine, linear, pow<x> or sigmoid")
    if settings:
        raise ValueError(f"schedule {schedule} has no setting {', '.join(settings)}")
    return share


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """(1 + scale) cond - scale uncond."""
    return (1 + scale) * cond - scale * uncond


def take_step(logits: Tensor, canvas: Tensor, step: int, sampling: Sampling, draws: Draws) -> Step:
    """Draw all unknown codes of a canvas (B, N), and mask the least confident of them again."""
    unknown = canvas == MASKED
    probabilities = logits.softmax(-1)
    drawn = (probabilities / draws.exponential).argmax(-1)
    codes = torch.where(unknown, drawn, canvas)
    sure = torch.finfo(probabilities.dtype).max
    chosen = probabilities.gather(-1, codes[..., None])[..., 0].masked_fill(~unknown, sure)

    share = masked_share(sampling.schedule, sampling.ratio(step), sampling.schedule_settings)
    wanted = (canvas.shape[1] * share).floor().to(canvas.device)
    mask_len = (unknown.sum(1, keepdim=True) - 1).minimum(wanted).clamp(min=1)

    confidence = _log(chosen) + sampling.temperature_at(step) * -_log(-_log(draws.uniform))
    cut_off = confidence.sort(-1).values.gather(1, mask_len.long())
    masking = confidence < cut_off
    return Step(probabilities, codes, mask_len, masking, codes.masked_fill(masking, MASKED))


def _log(x: Tensor) -> Tensor:
    return x.clamp(min=_TINY).log()


def sample(predict: Predict, canvas: Tensor, sampling: Sampling, noise: Noise) -> Tensor:
    """From a canvas int64 (B, N), MASKED all over or in part, to codes (B, N): those of the last step's draw."""
    codes = canvas
    for step in range(sampling.steps):
        taken = take_step(predict(canvas), canvas, step, sampling, noise(step))
        codes, canvas = taken.codes, taken.canvas
    return codes


def seeded_noise(seeds: Sequence[int], positions: int, codes: int, device: torch.device) -> Noise:
    """Noise of which image i's follows from seeds[i] alone, drawn on the CPU: the same for every device and batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draws(step: int) -> Draws:
        parts = [(_exponential((positions, codes), one), torch.rand(positions, generator=one)) for one in generators]
        exponential, uniform = (torch.stack(part).to(device) for part in zip(*parts))
        return Draws(exponential, uniform)

    return draws


def _exponential(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).exponential_(generator=generator)
