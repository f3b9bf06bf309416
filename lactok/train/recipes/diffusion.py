"""Recipe `diffusion`: the paper's stage 1. The trainable copy learns to steer a frozen latent diffusion model.

Equation 4: the squared error of the noise predicted from noised latents, the timestep, and the code-embedding map (of
the velocity, where that is what the UNet predicts). The trainable copy starts from the weights of the UNet's encoder
half, its zero convolutions at zero. The encoder's images have a size drawn for each step and the target images grow
(section 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lactok.models.ladd import LatentDecoder
from lactok.models.prediction import squared_errors
from lactok.models.samplers import ddim_sampler
from lactok.train.distances import mean_psnr
from lactok.train.noise import normal, timesteps
from lactok.train.parts import is_dry_run
from lactok.train.recipe import Batch, Losses, Provenance
from lactok.train.recipes.trainable_copy import TrainableCopyOptions, TrainableCopyRecipe

NOISE, TIME, SAMPLER = range(3)
"""RNG streams of a sample, see lactok/train/noise.py."""

MEASURED = 16
"""Validation images that are sampled for the log's PSNR: each costs an NFE of `sample_steps`."""


@dataclass
class DiffusionTrainingOptions(TrainableCopyOptions):
    """sample_steps: of DDIM, for the sample images and the log's PSNR.

    condition_gain: of the last of the convolutions that read the code-embedding map, at the start (1 keeps the power of
    what
        comes in). Published, it starts at zero as the trainable copy's outputs do, and a product of two zeros is slow
        to leave; above zero the decoder still starts as the unsteered one.
    """

    sample_steps: int = 25
    condition_gain: float = 0.0


class DiffusionRecipe(TrainableCopyRecipe[DiffusionTrainingOptions]):
    """Stage 1."""

    Options = DiffusionTrainingOptions

    def __init__(self, options: DiffusionTrainingOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        if is_dry_run():
            return
        LatentDecoder(self.config.decoder, self.frozen["unet"], self.control).copy_unet_encoder()
        last = self.control.controlnet_cond_embedding.conv_out
        if options.condition_gain:
            nn.init.normal_(last.weight, std=options.condition_gain * last.weight[0].numel() ** -0.5)

    def _errors(self, images: Tensor, seeds: Sequence[int], size: int) -> Tensor:
        """Squared error of the prediction (B,), code embeddings from images at `size` pixels."""
        latents, embeddings = self.latents(images), self.embeddings(images, size)
        noise = normal(seeds, latents, NOISE)
        t = timesteps(seeds, latents.device, self.schedule.timesteps, TIME)
        predicted = self.lactok().decoder.predict(self.schedule.noised(latents, noise, t), t, embeddings)
        return squared_errors(predicted, noise, t, self.config.decoder.prediction, self.schedule)

    def forward(self, batch: Batch) -> Losses:
        error = self._errors(batch.images, batch.seeds, self.encoder_size(batch.step)).mean()
        return Losses(error, {"error": error.detach()})

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        network, sampler = self.lactok(), ddim_sampler(self.options.sample_steps)
        embeddings = self.embeddings(images, self.usual_encoder_size)
        noises = self.noises(images, seeds, sampler.draws, SAMPLER)
        return (network.images_of(network.decode_latents(embeddings, noises, sampler)) + 1) / 2

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """The prediction's error on all, and PSNR (dB) on 16 of them, of DDIM samples."""
        parts = [(images[i : i + 16], seeds[i : i + 16]) for i in range(0, len(images), 16)]
        errors = [self._errors(*part, self.usual_encoder_size) for part in parts]
        every = max(1, len(images) // MEASURED)
        few, of = images[::every][:MEASURED], seeds[::every][:MEASURED]
        return {"error": torch.cat(errors).mean().item(), "psnr": mean_psnr(self.reconstruct(few, of), few)}

    def export(self, path: Path, provenance: Provenance) -> None:
        self.save_trainable_copy(path, provenance)
