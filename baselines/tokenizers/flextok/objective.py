"""The training objective of FlexTok, recipe `flextok`: rectified flow on an autoencoder's latents, with nested dropout.

The decoder learns the velocity from clean latents to noise, given a random prefix of the registers' code embeddings;
encoder, quantizer and decoder learn together by that loss alone (arXiv 2502.13967, section 3). The published training
adds an alignment of the decoder's features with DINOv2's (REPA), which is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from baselines.tokenizers.flextok.config import FlexTokConfig, TransformerConfig
from baselines.tokenizers.flextok.model import FlexTok
from baselines.tokenizers.flextok.sampler import Sampling, image_noise
from baselines.tokenizers.flextok.transformer import Block, ModulatedBlock
from lactok.models import autoencoder
from lactok.train.attention_start import grid_places, mimetic_, spread_cells
from lactok.train.codebook import codebook_statistics
from lactok.train.distances import mean_psnr
from lactok.train.noise import normal, uniform
from lactok.train.parts import left_by, load_autoencoder_or_skeleton
from lactok.train.recipe import Batch, Losses, Provenance, Recipe, export_model
from lactok.weights import WeightsSource

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

NOISE, TIME, KEEP, NULL = range(4)
"""RNG streams of a sample, see lactok/train/noise.py."""


@dataclass
class FlexTokTrainingOptions:
    """model: the transformers (its vae: null, the autoencoder comes from a checkpoint of recipe=vae).

    autoencoder: path of that checkpoint; null: the miniature that ships.
    keep_all: share of samples that keep all ids; the others keep a power of two of them, all powers alike.
    null_share: share of samples without condition, for guidance.
    time_shift: mean of the logit-normal times; above 0, more samples are nearly noise, where the ids matter most.
    sample_steps, guidance_scale: of the sample images.
    """

    model: FlexTokConfig = field(
        default_factory=lambda: FlexTokConfig(TransformerConfig(128, 4, 32), TransformerConfig(128, 4, 32))
    )
    autoencoder: str | None = None
    keep_all: float = 0.0
    null_share: float = 0.1
    time_shift: float = 0.0
    sample_steps: int = 10
    guidance_scale: float = 1.5


class FlexTokRecipe(Recipe):
    """Trains a `FlexTok` without its autoencoder, which is frozen."""

    Options = FlexTokTrainingOptions
    path_options = ("autoencoder",)

    @classmethod
    def with_inputs(cls, options: FlexTokTrainingOptions, runs: Path) -> FlexTokTrainingOptions:
        return replace(options, autoencoder=left_by(runs, "vae-mini", options.autoencoder))

    @classmethod
    def sources(cls, options: FlexTokTrainingOptions) -> tuple[WeightsSource, ...]:
        return (autoencoder.MINI.source(options.autoencoder),)

    def __init__(self, options: FlexTokTrainingOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        network, self._autoencoder, self._autoencoder_tensors = load_autoencoder_or_skeleton(options.autoencoder)
        self.frozen["autoencoder"] = network
        if (seen := self._autoencoder.latent_channels) != options.model.latent_channels:
            raise ValueError(f"the autoencoder has {seen} channels, the model {options.model.latent_channels}")
        self.model = FlexTok(options.model)
        _short_training_start(self.model)

    @property
    def image_size(self) -> int:
        return self.options.model.latent_size * self._autoencoder.downsample_factor

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        vae: AutoencoderKL = self.frozen["autoencoder"]
        mean = vae.encode(images * 2 - 1).latent_dist.mean.float()
        return mean * self._autoencoder.scaling_factor

    def _keep(self, seeds: Sequence[int], device: torch.device) -> Tensor:
        """How many of each sample's ids count: int64 (B,)."""
        registers = self.options.model.registers
        drawn, powers = uniform(seeds, device, KEEP), registers.bit_length()  # 1, 2, ..., 2^(powers - 1)
        share = self.options.keep_all
        power = ((drawn - share).clamp_min(0) / max(1 - share, 1e-9) * powers).long().clamp_max(powers - 1)
        return torch.where(drawn < share, registers, 2**power)

    def forward(self, batch: Batch) -> Losses:
        velocity_error = self._flow_errors(batch.images, batch.seeds)
        return Losses(velocity_error.mean(), {"flow": velocity_error.mean().detach()})

    def _flow_errors(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Squared error of the velocity (B,), at random times (logit-normal, arXiv 2403.03206) and prefixes."""
        latents = self._latents(images)
        noise = normal(seeds, latents, NOISE)
        times = (normal(seeds, latents[:, 0, 0, 0], TIME) + self.options.time_shift).sigmoid()
        decoder = self.model.decoder
        condition = decoder.condition(self.model.encode_latents(latents).embeddings, self._keep(seeds, latents.device))
        dropped = uniform(seeds, latents.device, NULL) < self.options.null_share
        condition = torch.where(dropped[:, None, None], decoder.null_condition(len(latents)), condition)
        place = times[:, None, None, None]
        predicted = decoder((1 - place) * latents + place * noise, times, condition)
        return (predicted - (noise - latents)).square().mean((1, 2, 3))

    @torch.no_grad()
    def _decoded(self, ids: Tensor, keep: int, seeds: Sequence[int]) -> Tensor:
        config = self.options.model
        shape = (config.latent_channels, config.latent_size, config.latent_size)
        noise = torch.stack([image_noise(seed, shape) for seed in seeds]).to(ids.device)
        sampling = Sampling(self.options.sample_steps, self.options.guidance_scale)
        latents = self.model.decode_latents(ids, torch.full((len(ids),), keep, device=ids.device), noise, sampling)
        vae: AutoencoderKL = self.frozen["autoencoder"]
        return (vae.decode(latents / self._autoencoder.scaling_factor).sample.float() + 1) / 2

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        ids = self.model.encode_latents(self._latents(images)).ids
        return self._decoded(ids, self.options.model.registers, seeds)

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """The flow's error, PSNR (mean over images, dB) with all ids and with an eighth of them, use of the ids."""
        registers = self.options.model.registers
        parts = [(images[i : i + 32], seeds[i : i + 32]) for i in range(0, len(images), 32)]
        ids = torch.cat([self.model.encode_latents(self._latents(part)).ids for part, _ in parts])
        psnr = {}
        for keep in (registers, max(1, registers // 8)):
            decoded = [self._decoded(of, keep, s) for of, (_, s) in zip(ids.split(32), parts, strict=True)]
            psnr[f"psnr_{keep}"] = mean_psnr(torch.cat(decoded), images)
        flow = torch.cat([self._flow_errors(part, s) for part, s in parts]).mean().item()
        return {"flow": flow, **psnr, **codebook_statistics(ids, self.options.model.codebook_size)}

    def export(self, path: Path, provenance: Provenance) -> None:
        """The transformers' weights, for `baselines.tokenizers.flextok.model.FlexTok` with vae=None."""
        made_with = {"autoencoder": self._autoencoder_tensors}
        export_model(path, self.model, self.options.model, provenance, made_with)


@torch.no_grad()
def _short_training_start(model: FlexTok) -> None:
    """Let registers look at the image, and the velocity at the registers, from the first step.

    Register i begins at a place of the grid, in an order of which every prefix covers the image evenly, and attention
    at one's own place; from the published start a short training never finds out that the registers say anything.
    """
    config = model.config
    cells = spread_cells(config.grid, config.registers)
    encoder, decoder = model.encoder, model.decoder
    encoder.registers.copy_(grid_places(config.encoder.dim, config.grid)[cells])
    decoder.register_positions.copy_(grid_places(config.decoder.dim, config.grid)[cells].mT)
    for vit in (encoder, decoder):
        vit.positions.copy_(grid_places(vit.positions.shape[1], config.grid).mT.unflatten(1, (config.grid,) * 2)[None])
        for block in cast(Sequence[Block | ModulatedBlock], vit.blocks):
            mimetic_(block.attn.to_q.weight, block.attn.to_k.weight, block.attn.to_v.weight, block.attn.to_out.weight)
    for shut in cast(Sequence[ModulatedBlock], decoder.blocks):
        # adaLN-Zero shuts every block; ajar, gradients reach the code embeddings at once
        gates = shut.modulation.bias.view(ModulatedBlock.KINDS, 6, -1)[:, :2]
        gates.fill_(0.5)
