"""Continuous autoencoders in which latent decoders end: diffusers' `AutoencoderKL`, by a typed configuration.

`patch_size` > 1 puts a pixel-unshuffle in front and its mirror at the end, which keeps a miniature off full-resolution
convolutions; the class stays the stock one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lactok.checkpoint_file import CheckpointMetadata
from lactok.models.vq import nearest_init
from lactok.tokenizers.miniature import Miniature

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


MINI = Miniature(
    "autoencoder-mini.safetensors",
    sha256="617a87100bd6ae23d5af0133d6ae57e343115976c2c99ddcbb7bcc1fc0e595bd",
    command="python -m lactok.train recipe=vae scale=mini data.root=DIR",
)
"""The miniatures' autoencoder, in place of FlexTok's, Stable Diffusion's and SDXL's."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of an `AutoencoderKL`; the defaults are SDXL's (its vae/config.json) at scaling_factor 0.13025.

    block_out_channels: width of each level, highest resolution first; every level but the last halves.
    scaling_factor: latents are multiplied by it after encoding and divided by it before decoding.
    patch_size: side in pixels of the patches that are unshuffled into channels; 1 for the published ones.
    """

    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.13025
    patch_size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))  # JSON gives lists

    @property
    def downsample_factor(self) -> int:
        """Pixels of a latent's side (8)."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """The stock network of these sizes, images (B, 3, H, W) in [-1, 1] to latents of H / downsample_factor."""
    from diffusers import AutoencoderKL

    levels = len(config.block_out_channels)
    model = AutoencoderKL(
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        latent_channels=config.latent_channels,
        scaling_factor=config.scaling_factor,
    )
    if config.patch_size > 1:
        _patchify(model, config)
    return model


def _patchify(model: AutoencoderKL, config: AutoencoderConfig) -> None:
    """First and last convolution on patches."""
    size, first, width = config.patch_size, model.encoder.conv_in, config.block_out_channels[0]
    into = nn.Conv2d(3 * size**2, first.out_channels, 3, padding=1)
    out = nn.Conv2d(width, 3 * size**2, 3, padding=1)
    nearest_init(out, size**2)
    model.encoder.conv_in = nn.Sequential(nn.PixelUnshuffle(size), into)
    model.decoder.conv_out = nn.Sequential(out, nn.PixelShuffle(size))


def load_mini_autoencoder(path: str | None = None) -> tuple[AutoencoderKL, AutoencoderConfig, CheckpointMetadata]:
    """The miniatures' autoencoder (or the local file of the same kind), frozen, on the CPU, and what is known of it.

    Raises MissingWeights or WeightsError.
    """
    model, metadata = MINI.load(lambda made: build_autoencoder(made.build_config(AutoencoderConfig)), path)
    return model.eval().requires_grad_(False), metadata.build_config(AutoencoderConfig), metadata
