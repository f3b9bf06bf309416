"""The training objective of SeedTok in miniature, recipe `seed`.

Encoder, quantizer and decoder learn to rebuild an image embedding from causal ids, as SEED does for unCLIP's CLIP
embedding (arXiv 2310.01218, section 3.2); here the target is what EfficientNet-Lite2's feature maps hold on average. A
latent diffusion model learns to generate from the embedding that the ids give, with unCLIP's noise and schedules; its
gradient stops there. Published, ViT and Q-Former come trained on hundreds of millions of captioned images, and text
is a target, too. Lite2's last features, nearer to meaning, are out of reach: from hundreds of images, no part of
their variance on others can be learned, while that of its first maps can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.tokenizers.seedtok.diffusion_decoder import (
    TIMESTEPS,
    SeedMini,
    SeedMiniConfig,
    build_unclip,
    latents_schedule,
    noised_condition,
)
from baselines.tokenizers.seedtok.model import SeedModel, normalise
from baselines.tokenizers.seedtok.unclip import Sampling
from lactok import registry
from lactok.feature_extractors.effnet import STAGE_BLOCKS
from lactok.models import autoencoder
from lactok.train.attention_start import grid_places, mimetic_, spread_cells
from lactok.train.codebook import DeadCodes, RevivalOptions, codebook_statistics
from lactok.train.distances import mean_psnr
from lactok.train.noise import normal, uniform
from lactok.train.parts import left_by, load_autoencoder_or_skeleton
from lactok.train.recipe import Batch, Losses, Provenance, Recipe, export_model
from lactok.weights import WeightsSource

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from lactok.feature_extractors.effnet import Effnet

NOISE, TIME, LEVEL, EMBEDDING, NULL = range(5)
"""RNG streams of a sample, see lactok/train/noise.py."""

STATISTICS_STEPS = 40
"""From whose images the target's mean and deviation are taken."""


@dataclass
class SeedTrainingOptions(RevivalOptions):
    """model: the networks. autoencoder: checkpoint of recipe=vae; null: the miniature that ships.

    features_size: pixels a side to which images are enlarged for the target's network; features_cells: for each of its
        first feature maps (1 to 5 of them), the cells of a side whose means by channel are the target; 1: the map's.
    most_noise: largest noise level of the embedding in training, of 1000; null_share: share without condition.
    quantize_from: the first step at which the decoder sees code embeddings; before it, the encoder's vectors.
    sample_steps, guidance_scale: of the sample images.
    """

    model: SeedMiniConfig = field(default_factory=SeedMiniConfig)
    autoencoder: str | None = None
    features_size: int = 128
    features_cells: list[int] = field(default_factory=lambda: [1, 1, 1, 1])
    most_noise: int = 100
    null_share: float = 0.1
    quantize_from: int = 0
    sample_steps: int = 10
    guidance_scale: float = 2.0

    def __post_init__(self) -> None:
        self.check_revival()
        cells = self.features_cells
        if not 1 <= len(cells) <= len(STAGE_BLOCKS) or min(cells) < 1:
            raise ValueError(
                f"features_cells={cells}: expected 1 to {len(STAGE_BLOCKS)} numbers of cells a side, each 1 or more"
            )


class SeedRecipe(Recipe):
    """Trains a `SeedMini`."""

    Options = SeedTrainingOptions
    path_options = ("autoencoder",)

    @classmethod
    def with_inputs(cls, options: SeedTrainingOptions, runs: Path) -> SeedTrainingOptions:
        return replace(options, autoencoder=left_by(runs, "vae-mini", options.autoencoder))

    @classmethod
    def sources(cls, options: SeedTrainingOptions) -> tuple[WeightsSource, ...]:
        return (autoencoder.MINI.source(options.autoencoder),)

    def __init__(self, options: SeedTrainingOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        network, self._autoencoder, self._autoencoder_tensors = load_autoencoder_or_skeleton(options.autoencoder)
        self.frozen["autoencoder"] = network
        self.frozen["features"] = registry.load("features", "effnet-lite2")()
        self.model = SeedMini(options.model)
        tokenizer = options.model.tokenizer
        _short_training_start(self.model.tokenizer)
        width = _means(self.frozen["features"], torch.zeros(1, 3, 32, 32, device="cpu"), options).shape[1]
        if options.model.tokenizer.image_features_dim != width:
            raise ValueError(
                f"options.model.tokenizer.image_features_dim={options.model.tokenizer.image_features_dim}: "
                f"cells of the first feature maps, features_cells={options.features_cells}, give {width} means"
            )
        self.statistics = nn.BatchNorm1d(width, affine=False, momentum=None)  # None: a mean of all images seen
        self.dead_codes = DeadCodes(tokenizer.n_embed, options)
        self._schedule = latents_schedule()

    @property
    def image_size(self) -> int:
        return self.options.model.tokenizer.vit.img_size

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        """Image embeddings (B, D): means of feature maps' cells, brought to mean 0, deviation 1 over images."""
        means = _means(self.frozen["features"], images, self.options)
        return F.batch_norm(means, self.statistics.running_mean, self.statistics.running_var)

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        vae: AutoencoderKL = self.frozen["autoencoder"]
        mean = vae.encode(images * 2 - 1).latent_dist.mean.float()
        return mean * self._autoencoder.scaling_factor

    def _embeds(self, images: Tensor, quantize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The embedding that the ids give (or the vectors before them), the ids, and the quantizer's losses."""
        model = self.model.tokenizer
        vectors = model.encode(normalise(images)).quantizer_input
        ids, lifted = model.quantized(vectors)
        as_map = vectors.transpose(1, 2).unsqueeze(-1)
        if self.training:
            self.dead_codes.note(ids, as_map)
        losses = model.quantize.losses(as_map, ids.unsqueeze(-1)).total
        if not quantize:  # commitment to code embeddings that nobody sees would only draw the vectors together
            lifted, losses = model.decode_task_layer(vectors), 0 * losses
        return model.image_embeds(lifted), ids, losses

    def forward(self, batch: Batch) -> Losses:
        if self.training and batch.step < STATISTICS_STEPS:
            self.statistics(_means(self.frozen["features"], batch.images, self.options))
        embeds, _, quantizer = self._embeds(batch.images, batch.step >= self.options.quantize_from)
        semantic = (embeds - self._targets(batch.images)).square().mean()
        denoising = self._denoising_errors(batch.images, embeds.detach(), batch.seeds).mean()
        parts = {"semantic": semantic, "painting": denoising, "quantizer": quantizer}
        return Losses(semantic + denoising + quantizer, {k: v.detach() for k, v in parts.items()})

    def _denoising_errors(self, images: Tensor, embeds: Tensor, seeds: Sequence[int]) -> Tensor:
        """Squared error of the velocity (B,), at random times and noise levels of the embedding."""
        latents, device = self._latents(images), images.device
        noise = normal(seeds, latents, NOISE)
        times = (uniform(seeds, device, TIME) * TIMESTEPS).long()
        levels = (uniform(seeds, device, LEVEL) * self.options.most_noise).long()
        condition = noised_condition(embeds, levels, normal(seeds, embeds, EMBEDDING))
        dropped = uniform(seeds, device, NULL) < self.options.null_share
        condition = condition.masked_fill(dropped[:, None], 0.0)  # as the pipeline's unconditional pass
        prompt = latents.new_zeros(len(latents), 1, self.options.model.painter.cross_attention_dim)
        noised = self._schedule.add_noise(latents, noise, times)
        predicted = self.model.unet(noised, times, encoder_hidden_states=prompt, class_labels=condition).sample
        velocity = self._schedule.get_velocity(latents, noise, times)
        return (predicted.float() - velocity).square().mean((1, 2, 3))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        options = self.options
        decoder = build_unclip(
            self.model.unet,
            self.frozen["autoencoder"],
            self._autoencoder,
            options.model.tokenizer.image_features_dim,
        )
        embeds = self._embeds(images)[0]
        return decoder.generate(embeds.float(), seeds, Sampling(options.sample_steps, options.guidance_scale, 0))

    @torch.no_grad()
    def measure(self, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
        """Cosine of embedding and target, the noise's error, use of the codebook, PSNR (dB) of 16 images."""
        ids, cosine, denoising = [], [], []
        for start in range(0, len(images), 32):
            part = images[start : start + 32]
            embeds, of_part, _ = self._embeds(part)
            ids.append(of_part)
            cosine.append(F.cosine_similarity(embeds, self._targets(part)))
            denoising.append(self._denoising_errors(part, embeds, seeds[start : start + 32]))
        few = slice(0, 16)
        return {
            "cosine": torch.cat(cosine).mean().item(),
            "painting": torch.cat(denoising).mean().item(),
            "psnr": mean_psnr(self.reconstruct(images[few], seeds[few]), images[few]),
            **codebook_statistics(torch.cat(ids), self.options.model.tokenizer.n_embed),
        }

    def after_step(self, step: int) -> None:
        self.dead_codes.revive(self.model.tokenizer.quantize, self.seed, step, self.total_steps)

    def export(self, path: Path, provenance: Provenance) -> None:
        """Both networks' weights, for `SeedMini`."""
        made_with = {"autoencoder": self._autoencoder_tensors}
        export_model(path, self.model, self.options.model, provenance, made_with)


@torch.no_grad()
def _means(features: nn.Module, images: Tensor, options: SeedTrainingOptions) -> Tensor:
    """Channel means (B, D) of the cells of enlarged images' first feature maps."""
    size = (options.features_size,) * 2
    enlarged = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    cells = options.features_cells
    stages = cast("Effnet", features).stages(enlarged, len(cells))
    return torch.cat(
        [F.adaptive_avg_pool2d(s.float(), side).flatten(1) for s, side in zip(stages, cells, strict=True)], 1
    )


@torch.no_grad()
def _short_training_start(model: SeedModel) -> None:
    """Let the ids depend on the image from the first step; published, ViT and Q-Former come trained.

    Query i begins at a place of the grid, in an order of which every prefix covers the image evenly, and attention at
    one's own place.
    """
    vit, qformer = model.config.vit, model.config.qformer
    grid = vit.img_size // vit.patch_size
    embeddings = model.vision.embeddings
    nn.init.normal_(embeddings.patch_embedding.weight, std=2 * embeddings.patch_embedding.weight[0].numel() ** -0.5)
    nn.init.normal_(embeddings.class_embedding, std=0.02)
    embeddings.position_embedding[0, 1:] = grid_places(vit.embed_dim, grid)
    for layer in model.vision.encoder.layers:
        query, key, value = layer.self_attn.qkv.weight.chunk(3)
        mimetic_(query, key, value, layer.self_attn.projection.weight)
        nn.init.xavier_uniform_(layer.mlp.fc1.weight)
        nn.init.xavier_uniform_(layer.mlp.fc2.weight)
    cells = spread_cells(grid, qformer.num_query_token)
    model.query_tokens[0] = grid_places(qformer.hidden_size, grid)[cells]
    for layer in model.qformer.encoder.layer:
        crossing = (layer.crossattention,) if layer.has_cross_attention else ()
        for block in (layer.attention, *crossing):
            attention, projection = block.attention, block.output.dense.weight
            if attention.key.weight.shape == attention.query.weight.shape:
                mimetic_(attention.query.weight, attention.key.weight, attention.value.weight, projection)
    nn.init.trunc_normal_(model.pos_embed_image, std=0.02)
    for layer in (model.decode_task_layer[2], *model.image_down[::2]):
        nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(model.quantize.embedding.weight)  # moved onto the encoder's vectors by revival
