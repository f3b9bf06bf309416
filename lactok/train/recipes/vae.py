"""Recipe `vae`: a small KL autoencoder, what latent decoders in miniature have instead of SDXL's.

L1 + perceptual distance + a small KL term, the reconstruction part of the published recipe of latent diffusion's
autoencoders (arXiv 2112.10752, section 3.1 and appendix G), without the adversarial term.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lactok.checkpoint_file import LATENTS, latents_sha256, read_checkpoint
from lactok.data.batches import rng
from lactok.models.autoencoder import AutoencoderConfig, build_autoencoder
from lactok.train.distances import PerceptualDistance, PerceptualOptions, mean_psnr
from lactok.train.noise import normal
from lactok.train.parts import is_dry_run
from lactok.train.recipe import Batch, Losses, Provenance, Recipe, export_model
from lactok.weights import WeightsError, WeightsSource

FIRST_LOG_VARIANCE = -6.0
"""Of the posterior at the start: with 0, the latents of a short training stay drowned in their own noise."""

MOMENTUM = 0.99
"""Of the running mean of the latents' power a step, from which the scaling factor follows."""

TRAIN_SIZE = 22
"""RNG stream, lactok/data/batches.py, that picks the size of a step's images."""


@dataclass
class VAEOptions(PerceptualOptions):
    """model: the network; its scaling_factor is measured, not set. image_size: pixels, side of the images.

    train_sizes: pixels of a side of the training images in place of image_size, one of them drawn for each step. What
        saw one size alone decodes other ones, and tiles, worse.
    pixel, kl: weights of the L1 term (on [-1, 1]), and of the divergence from a unit normal (mean over latent values).
    decoder_only: encoder and scaling factor stay those of init=, which it needs: the latents are the same, and what was
        trained on them takes the new file, too.
    """

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    image_size: int = 256
    train_sizes: list[int] = field(default_factory=list)
    pixel: float = 1.0
    kl: float = 1e-4
    decoder_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_scoring_network("an autoencoder")
        for name, size in [("image_size", self.image_size), *(("train_sizes", size) for size in self.train_sizes)]:
            if size < 1 or size % self.model.downsample_factor:
                raise ValueError(
                    f"{name}={size}: expected a positive multiple of {self.model.downsample_factor}, the pixels of a "
                    "latent's side"
                )


class VAERecipe(Recipe):
    """Trains an `AutoencoderKL`; the exported scaling factor brings its latents to unit power."""

    Options = VAEOptions
    path_options = ("perceptual_weights",)
    power: Tensor
    options: VAEOptions

    @classmethod
    def sources(cls, options: VAEOptions) -> tuple[WeightsSource, ...]:
        return options.perceptual_sources()

    def __init__(self, options: VAEOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        self.model = build_autoencoder(options.model)
        with torch.no_grad():
            self.model.quant_conv.bias[options.model.latent_channels :] = FIRST_LOG_VARIANCE
        self.register_buffer("power", torch.ones(()))
        self._start: tuple[float, str] | None = None
        """Scaling factor of the checkpoint that it begins with, and the sha256 by which its latents go."""
        if options.decoder_only:
            self.model.encoder.requires_grad_(False)
            self.model.quant_conv.requires_grad_(False)
        self.frozen["perceptual"] = PerceptualDistance(options, load=not is_dry_run())

    @property
    def image_size(self) -> int:
        return self.options.image_size

    def image_size_at(self, step: int) -> int:
        sizes = self.options.train_sizes
        if not sizes:
            return self.image_size
        return sizes[int(rng(self.seed, TRAIN_SIZE, step).integers(len(sizes)))]

    def forward(self, batch: Batch) -> Losses:
        options, target = self.options, batch.images * 2 - 1
        posterior = self.model.encode(target).latent_dist
        latents = posterior.mean + posterior.std * normal(batch.seeds, posterior.mean)
        output = self.model.decode(latents).sample
        pixel = (output - target).abs().mean()
        perceptual = self.frozen["perceptual"](batch.images, (output + 1) / 2).mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        if self.training and not options.decoder_only:
            self.power.lerp_(latents.detach().float().square().mean(), 1 - MOMENTUM)
        total = options.pixel * pixel + options.perceptual * perceptual + options.kl * kl
        parts = {"pixel": pixel, "perceptual": perceptual, "kl": kl}
        return Losses(total, {k: v.detach() for k, v in parts.items()})

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return (self.model.decode(self.model.encode(images * 2 - 1).latent_dist.mean).sample + 1) / 2

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """PSNR (mean over images, dB), both distances, and the standard deviation of the latents."""
        outputs = torch.cat([self.reconstruct(part, ()).float() for part in images.split(32)])
        perceptual = [self.frozen["perceptual"](a, b) for a, b in zip(images.split(32), outputs.split(32), strict=True)]
        return {
            "psnr": mean_psnr(outputs, images),
            "pixel": (outputs - images).abs().mean().item() * 2,
            "perceptual": torch.cat(perceptual).mean().item(),
            "latent_std": self.power.sqrt().item(),
        }

    def export(self, path: Path, provenance: Provenance) -> None:
        """The model's weights, for `lactok.models.autoencoder.build_autoencoder`, with the measured scaling factor."""
        scaling_factor, made_with = 1 / self.power.sqrt().item(), {}
        if self.options.decoder_only:
            assert self._start is not None, "require_start refuses this"
            scaling_factor, latents = self._start
            made_with = {LATENTS: latents}
        config = dataclasses.replace(self.options.model, scaling_factor=scaling_factor)
        export_model(path, self.model, config, provenance.with_losses(self.options.losses), made_with)

    @classmethod
    def missing_start(cls, options: VAEOptions) -> str | None:
        if options.decoder_only:
            return "options.decoder_only=true: expected init=FILE, the checkpoint whose encoder stays"
        return None

    def start_from(self, path: Path) -> None:
        super().start_from(path)
        config = read_checkpoint(path)[1].build_config(AutoencoderConfig)
        scaling = config.scaling_factor
        wanted = dataclasses.replace(self.options.model, scaling_factor=scaling)
        if self.options.decoder_only and config != wanted:
            differ = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(wanted, f.name)]
            given = ", ".join(f"{n} {getattr(config, n)}, options.model has {getattr(wanted, n)}" for n in differ)
            raise WeightsError(f"options.decoder_only=true keeps the encoder of {path}, which has {given}")
        self.power.fill_(scaling**-2)
        self._start = scaling, latents_sha256(path)
