"""A small painter of image embeddings: SD 2.1 unCLIP's networks in miniature, for its stock pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from baselines.tokenizers.seedtok.model import SeedConfig, SeedModel
from baselines.tokenizers.seedtok.unclip import UnCLIP
from lactok.models.autoencoder import AutoencoderConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel

TIMESTEPS = 1000
"""Of the diffusion of latents, and levels of the embedding's noise (SD 2.1 unCLIP's two schedulers)."""


@dataclass(frozen=True)
class PainterConfig:
    """A `UNet2DConditionModel` under an image embedding alone; defaults are free choices for a miniature.

    block_out_channels: width of each level, highest resolution first; all but the first attend.
    heads: of attention; cross_attention_dim: width of the empty prompt's one state, which is zero.
    """

    sample_size: int = 16
    latent_channels: int = 8
    block_out_channels: tuple[int, ...] = (64, 96)
    layers_per_block: int = 1
    heads: int = 4
    norm_num_groups: int = 8
    cross_attention_dim: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))  # JSON gives lists


def build_unet(config: PainterConfig, embedding_dim: int) -> UNet2DConditionModel:
    """The stock network; embedding and the code of its noise level enter beside the time, as in SD 2.1 unCLIP."""
    from diffusers import UNet2DConditionModel

    attending = len(config.block_out_channels) - 1
    return UNet2DConditionModel(
        sample_size=config.sample_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attending,
        up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",),
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.heads,  # diffusers' name for the number of heads
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * embedding_dim,
    )


def latents_schedule() -> DDIMScheduler:
    """SD 2.1 unCLIP's diffusion of latents (scheduler/scheduler_config.json): scaled-linear betas, velocities."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def embedding_schedule() -> DDPMScheduler:
    """SD 2.1 unCLIP's noising of embeddings (image_noising_scheduler/scheduler_config.json)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=TIMESTEPS, beta_schedule="squaredcos_cap_v2")


def build_unclip(
    unet: UNet2DConditionModel, vae: AutoencoderKL, autoencoder: AutoencoderConfig, embedding_dim: int
) -> UnCLIP:
    """The stock pipeline around them; embeddings are taken as they are (mean 0, deviation 1)."""
    from diffusers import StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=unet,  # the pipeline reads its dtype, no more, where an embedding is handed in
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim),
        image_noising_scheduler=embedding_schedule(),
        tokenizer=None,
        text_encoder=None,
        unet=unet,
        scheduler=latents_schedule(),
        vae=vae,
    )
    pipeline.vae_scale_factor = autoencoder.downsample_factor  # the pipeline would not count the patches
    return UnCLIP(pipeline)


def noised_condition(embeds: torch.Tensor, levels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, D) with noise of levels (B,) beside the code of the level: (B, 2 D), as the pipeline makes it."""
    from diffusers.models.embeddings import get_timestep_embedding

    noised = embedding_schedule().add_noise(embeds, noise, levels)
    return torch.cat([noised, get_timestep_embedding(levels, embeds.shape[1], True, 0)], 1)


@dataclass(frozen=True)
class SeedMiniConfig:
    """tokenizer, painter: the two networks."""

    tokenizer: SeedConfig = field(default_factory=SeedConfig)
    painter: PainterConfig = field(default_factory=PainterConfig)

    def __post_init__(self) -> None:
        for name, cls in (("tokenizer", SeedConfig), ("painter", PainterConfig)):
            if isinstance(value := getattr(self, name), dict):  # JSON gives mappings
                object.__setattr__(self, name, cls(**value))


class SeedMini(nn.Module):
    """Both networks, under one state dict."""

    def __init__(self, config: SeedMiniConfig) -> None:
        super().__init__()
        self.tokenizer = SeedModel(config.tokenizer)
        self.unet = build_unet(config.painter, config.tokenizer.image_features_dim)
