"""Recipe `accelerator`: a LoRA that cuts the miniature latent diffusion model to few steps, or to one.

Two kinds, for the two samplers of lactok/models/samplers.py:

- `tlcm`: latent consistency distillation (arXiv 2310.04378; TLCM is 2406.05768) on TLCM's grid of timesteps. From a
  noised image at a grid point the teacher walks by DDIM to the next one, and the student's x_0 must be the one that
  it predicts there, or, at the end of the grid, the teacher's. The points that are evaluated in use (999, 499, 124)
  are drawn half of the time.
- `hypersd`: one step. From pure noise at t = 999, the student's x_0 must be what the teacher reaches by DDIM in
  `rollout` steps: a squared error, and one of the differences between neighbouring latents, which a mean of many
  possible images fails first. No network judges. (Hyper-SD, arXiv 2404.13686, goes there in segments and adds
  adversarial and human feedback.)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lactok.models.autoencoder import MINI as AUTOENCODER
from lactok.models.few_step_lora import evaluated_timesteps, require_few_step_lora
from lactok.models.latent_diffusion import predict_noise
from lactok.models.lora import LoRAConfig, add_lora
from lactok.models.samplers import FIRST_TIMESTEP, TLCM_GRID, consistency_sampler
from lactok.tokenizers.mini_parts import LDM, Diffusion, FewStepLoRAConfig
from lactok.train.noise import normal, timesteps, uniform
from lactok.train.parts import left_by, load_diffusion_or_skeleton
from lactok.train.recipe import Batch, Losses, Provenance, Recipe, export_state
from lactok.weights import WeightsSource

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

NOISE, POINT, CHOICE, FRESH = 0, 1, 2, 3
"""RNG streams of a sample, see lactok/train/noise.py; FRESH and those after it are a sampler's noises."""

TLCM_STEPS = 3
"""NFE whose timesteps are drawn more often: 999, 499, 124; their first two are those of the paper."""

HUBER = 0.1
"""Below it the consistency loss is a square, above it an absolute value; latents have unit power."""


@dataclass
class FewStepLoRAOptions:
    """accelerator: "tlcm" or "hypersd". lora: rank, alpha and layers of the LoRA. image_size: pixels, side.

    base, autoencoder: checkpoints of recipe=ldm and recipe=vae; null: those of the runs ldm-mini and vae-mini next to
        this one, else the miniatures that ship.
    substeps: of the teacher's DDIM from one grid point to the next (tlcm). evaluated_share: of samples at the points
        that are evaluated in use (tlcm). rollout: steps of the teacher's DDIM from noise (hypersd).
    differences: weight of the error of the differences between neighbouring latents (hypersd).
    """

    accelerator: str | None = None
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    image_size: int = 128
    base: str | None = None
    autoencoder: str | None = None
    substeps: int = 3
    evaluated_share: float = 0.5
    rollout: int = 8
    differences: float = 1.0

    def __post_init__(self) -> None:
        require_few_step_lora(self.accelerator)


class FewStepLoRARecipe(Recipe):
    """Trains one LoRA (peft) of the UNet; its unchanged weights are the teacher's."""

    Options = FewStepLoRAOptions
    path_options = ("base", "autoencoder")

    @classmethod
    def with_inputs(cls, options: FewStepLoRAOptions, runs: Path) -> FewStepLoRAOptions:
        base = left_by(runs, "ldm-mini", options.base)
        return replace(options, base=base, autoencoder=left_by(runs, "vae-mini", options.autoencoder))

    @classmethod
    def sources(cls, options: FewStepLoRAOptions) -> tuple[WeightsSource, ...]:
        return LDM.source(options.base), AUTOENCODER.source(options.autoencoder)

    def __init__(self, options: FewStepLoRAOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        parts = load_diffusion_or_skeleton(options.base, options.autoencoder)
        self._model, self._autoencoder = parts.model, parts.autoencoder
        self._base = parts.file.tensors if isinstance(parts, Diffusion) else ""
        self.frozen["autoencoder"], self.frozen["teacher"] = parts.vae, parts.unet
        self.unet = copy.deepcopy(parts.unet)
        add_lora(self.unet, options.lora)
        self.schedule = parts.model.schedule
        self.timesteps = evaluated_timesteps(require_few_step_lora(options.accelerator), TLCM_STEPS)

    @property
    def image_size(self) -> int:
        return self.options.image_size

    def exported(self) -> tuple[nn.Module, Mapping[str, Tensor]]:
        return self.unet, {name: tensor for name, tensor in self.unet.state_dict().items() if ".lora_" in name}

    def _clean(self, unet: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """The x_0 that a network predicts, float32."""
        return self.schedule.clean(x, predict_noise(unet, self._model, x, t), t)

    @torch.no_grad()
    def _walk(self, x: Tensor, start: Tensor, end: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The teacher's DDIM from timesteps `start` (B,) to `end`: latents there, and the last x_0 on the way."""
        for step in range(steps):
            t = start + ((end - start) * step) // steps
            after = start + ((end - start) * (step + 1)) // steps
            noise = predict_noise(self.frozen["teacher"], self._model, x, t)
            clean = self.schedule.clean(x, noise, t)
            x = self.schedule.noised(clean, noise, after)
        return x, clean

    def forward(self, batch: Batch) -> Losses:
        if self.options.accelerator == "hypersd":
            error, difference = self._one_step_errors(batch.images, batch.seeds)
            total = error.mean() + self.options.differences * difference.mean()
            return Losses(total, {"latents": error.mean().detach(), "differences": difference.mean().detach()})
        error = self._consistency_errors(batch.images, batch.seeds).mean()
        return Losses(error, {"consistency": error.detach()})

    def _one_step_errors(self, images: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Squared errors (B,) of x_0 from pure noise, and of its differences between neighbours."""
        noise = normal(seeds, self._like(images), NOISE)
        first = torch.full((len(images),), FIRST_TIMESTEP, device=images.device)
        _, target = self._walk(noise, first, torch.zeros_like(first), self.options.rollout)
        error = self._clean(self.unet, noise, first) - target
        rows, columns = (error.diff(dim=axis).square().mean((1, 2, 3)) for axis in (2, 3))
        return error.square().mean((1, 2, 3)), (rows + columns) / 2

    def _consistency_errors(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Huber's distance (B,) of x_0 at a grid point from x_0 at the next, which the teacher leads to."""
        latents = self._latents(images)
        grid = torch.tensor(TLCM_GRID, device=images.device)
        used = torch.tensor([TLCM_GRID.index(t) for t in self.timesteps], device=images.device)
        anywhere = timesteps(seeds, images.device, len(grid) - 1, POINT)
        evaluated = used[timesteps(seeds, images.device, len(used), POINT)]
        often = uniform(seeds, images.device, CHOICE) < self.options.evaluated_share
        place = torch.where(often, evaluated, anywhere)
        t, after = grid[place], grid[place + 1]
        x = self.schedule.noised(latents, normal(seeds, latents, NOISE), t)
        moved, teacher = self._walk(x, t, after, self.options.substeps)
        with torch.no_grad():
            student = self._clean(self.unet, moved, after)
        torch.clear_autocast_cache()  # what autocast cast without gradients would stay without them
        target = torch.where((after == 0)[:, None, None, None], teacher, student)
        return F.huber_loss(self._clean(self.unet, x, t), target, reduction="none", delta=HUBER).mean((1, 2, 3)) / HUBER

    def _like(self, images: Tensor) -> Tensor:
        factor = self._autoencoder.downsample_factor
        height, width = (side // factor for side in images.shape[-2:])
        return images.new_empty(len(images), self._autoencoder.latent_channels, height, width)

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        vae: AutoencoderKL = self.frozen["autoencoder"]
        mean = vae.encode(images * 2 - 1).latent_dist.mean.float()
        return mean * self._autoencoder.scaling_factor

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Samples from noise by the few steps, as many as there are images; no reconstructions."""
        like = self._like(images)
        noises = torch.stack([normal(seeds, like, FRESH + i) for i in range(len(self.timesteps))], dim=1)

        def student(x: Tensor, t: int) -> Tensor:
            return predict_noise(self.unet, self._model, x, t)

        latents = consistency_sampler(self.timesteps)(student, noises, self.schedule)
        vae: AutoencoderKL = self.frozen["autoencoder"]
        return (vae.decode(latents / self._autoencoder.scaling_factor).sample.float() + 1) / 2

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """The training errors on one in four of the validation images."""
        images, seeds = images[::4], seeds[::4]
        parts = [(images[i : i + 32], seeds[i : i + 32]) for i in range(0, len(images), 32)]
        if self.options.accelerator == "hypersd":
            errors = [torch.stack(self._one_step_errors(*part)) for part in parts]
            latents, differences = torch.cat(errors, dim=1).mean(1).tolist()
            return {"latents": latents, "differences": differences}
        return {"consistency": torch.cat([self._consistency_errors(*part) for part in parts]).mean().item()}

    def export(self, path: Path, provenance: Provenance) -> None:
        """The LoRA's matrices under peft's names, for `lactok.tokenizers.mini_parts.load_few_step_lora`."""
        options = self.options
        config = FewStepLoRAConfig(options.lora, options.accelerator, self.timesteps, self._base)
        export_state(path, self.exported()[1], config, provenance)
