"""Recipe `ldm`: a small unconditional latent diffusion model, what a LacTok in miniature has instead of SDXL.

SDXL's interfaces (zero text, size conditions) and schedule (arXiv 2307.01952) on the latents of a frozen autoencoder.
The target is the noise (arXiv 2006.11239, equation 14) or, in the miniature, the velocity: lactok/models/prediction.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lactok.models import autoencoder
from lactok.models.ladd import build_unet
from lactok.models.latent_diffusion import LatentDiffusionConfig, predict_noise
from lactok.models.prediction import squared_errors
from lactok.models.samplers import ddim_sampler
from lactok.tokenizers.mini_parts import LDMFileConfig
from lactok.train.noise import normal, timesteps
from lactok.train.parts import is_dry_run, left_by, load_autoencoder_or_skeleton
from lactok.train.recipe import Batch, Losses, Provenance, Recipe, export_model
from lactok.weights import WeightsSource

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

NOISE, TIME = range(2)
"""RNG streams of a sample, see lactok/train/noise.py."""

BANDS = (0, 250, 500, 750, 1000)
"""Of timesteps, in which the error on validation images is logged: the last is what few-step samplers start from."""


@dataclass
class LDMOptions:
    """model: the network. image_size: pixels, side of the training images.

    autoencoder: path of a checkpoint of recipe=vae; null: that of the run vae-mini next to this one, else the miniature
    that ships. sample_steps: of DDIM, for the sample images.
    """

    model: LatentDiffusionConfig = field(default_factory=LatentDiffusionConfig)
    image_size: int = 256
    autoencoder: str | None = None
    sample_steps: int = 25


class LDMRecipe(Recipe):
    """Trains the UNet; the sample sheet shows samples from noise below images to which they have no relation."""

    Options = LDMOptions
    path_options = ("autoencoder",)

    @classmethod
    def with_inputs(cls, options: LDMOptions, runs: Path) -> LDMOptions:
        return replace(options, autoencoder=left_by(runs, "vae-mini", options.autoencoder))

    @classmethod
    def sources(cls, options: LDMOptions) -> tuple[WeightsSource, ...]:
        return (autoencoder.MINI.source(options.autoencoder),)

    def __init__(self, options: LDMOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        network, self._autoencoder, self._autoencoder_tensors = load_autoencoder_or_skeleton(options.autoencoder)
        self.frozen["autoencoder"] = network
        self._check(options)
        self.unet = build_unet(options.model.unet)
        self.schedule = options.model.schedule

    def exported(self) -> tuple[nn.Module, Mapping[str, Tensor]]:
        return self.unet, self.unet.state_dict()

    def _check(self, options: LDMOptions) -> None:
        vae, model = self._autoencoder, options.model
        for what, seen, expected in (
            ("unet.in_channels", model.unet.in_channels, vae.latent_channels),
            ("unet.out_channels", model.unet.out_channels, vae.latent_channels),
            ("pixels_per_latent", model.pixels_per_latent, vae.downsample_factor),
        ):
            if seen != expected:
                raise ValueError(f"options.model.{what}={seen}: the autoencoder has {expected}")
        divisor = vae.downsample_factor * model.unet.downsample_factor
        if options.image_size % divisor and not is_dry_run():
            raise ValueError(f"options.image_size={options.image_size}: expected a multiple of {divisor}")

    @property
    def image_size(self) -> int:
        return self.options.image_size

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        vae: AutoencoderKL = self.frozen["autoencoder"]
        mean = vae.encode(images * 2 - 1).latent_dist.mean.float()
        return mean * self._autoencoder.scaling_factor

    def _errors(self, latents: Tensor, seeds: Sequence[int], t: Tensor) -> Tensor:
        """Squared error of the prediction (B,)."""
        noise, model = normal(seeds, latents, NOISE), self.options.model
        predicted = predict_noise(self.unet, model, self.schedule.noised(latents, noise, t), t)
        return squared_errors(predicted, noise, t, model.prediction, model.schedule)

    def forward(self, batch: Batch) -> Losses:
        latents = self._latents(batch.images)
        t = timesteps(batch.seeds, latents.device, self.schedule.timesteps, TIME)
        error = self._errors(latents, batch.seeds, t).mean()
        return Losses(error, {"error": error.detach()})

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Samples from noise, as many as there are images."""
        factor, channels = self._autoencoder.downsample_factor, self._autoencoder.latent_channels
        like = images.new_empty(len(images), channels, images.shape[2] // factor, images.shape[3] // factor)
        latents = ddim_sampler(self.options.sample_steps)(
            lambda x, t: predict_noise(self.unet, self.options.model, x, t),
            normal(seeds, like, NOISE)[:, None],
            self.schedule,
        )
        vae: AutoencoderKL = self.frozen["autoencoder"]
        return (vae.decode(latents / self._autoencoder.scaling_factor).sample.float() + 1) / 2

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """Squared error of the prediction by bands of timesteps, and the power of the latents (1, by their scaling)."""
        latents = torch.cat([self._latents(part) for part in images.split(32)])
        values = {}
        for low, high in pairwise(BANDS):
            t = low + timesteps(seeds, latents.device, high - low, TIME)
            errors = [
                self._errors(latents[i : i + 32], seeds[i : i + 32], t[i : i + 32]) for i in range(0, len(latents), 32)
            ]
            values[f"error_{low}"] = torch.cat(errors).mean().item()
        return {**values, "latent_power": latents.square().mean().item()}

    def export(self, path: Path, provenance: Provenance) -> None:
        """The UNet's weights, for `lactok.tokenizers.mini_parts.load_ldm`."""
        export_model(path, self.unet, LDMFileConfig(self.options.model, self._autoencoder_tensors), provenance)
