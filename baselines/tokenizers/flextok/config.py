"""The sizes of a FlexTok, as typed configurations from which published models and miniatures alike are built."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lactok.models.autoencoder import AutoencoderConfig

NOT_SHAPE = ("vae.scaling_factor", "max_timestep")
"""Fields that change what is computed but no tensor's shape; a checkpoint's own configuration states them."""


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig):
    """FlexTok's autoencoder: `VAE_BASE_CFG` of its vae_wrapper.py, with 16 channels."""

    latent_channels: int = 16
    scaling_factor: float = 1.0


@dataclass(frozen=True)
class TransformerConfig:
    """One trunk. dim: a multiple of head_dim; the gated MLP's hidden width is int(2 x mlp_ratio x dim / 3)."""

    dim: int
    depth: int
    head_dim: int = 64
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.dim % self.head_dim or self.dim % 4:
            raise ValueError(f"dim {self.dim}: expected a multiple of head_dim, {self.head_dim}, and of 4")

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return int(2 * self.mlp_ratio * self.dim / 3)


@dataclass(frozen=True)
class FlexTokConfig:
    """A whole tokenizer; the defaults are those of every published one.

    vae: None for a model that works on latents alone (then nothing turns images into latents).
    registers: most ids of an image; levels: FSQ levels of the numbers behind an id (their product is the vocabulary).
    latent_channels, patch_size, grid: latents (latent_channels, S, S) with S = grid x patch_size are read as grid x
    grid patches. frequencies: width of the sinusoidal time embedding, even. max_timestep: its scale (see FlowDecoder).
    """

    encoder: TransformerConfig
    decoder: TransformerConfig
    vae: VAEConfig | None = None
    registers: int = 256
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    latent_channels: int = 16
    patch_size: int = 2
    grid: int = 16
    frequencies: int = 256
    max_timestep: float = 1.0

    def __post_init__(self) -> None:
        for name, cls in (("encoder", TransformerConfig), ("decoder", TransformerConfig), ("vae", VAEConfig)):
            if isinstance(value := getattr(self, name), Mapping):  # JSON gives mappings
                object.__setattr__(self, name, cls(**value))
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.vae is not None and self.vae.latent_channels != self.latent_channels:
            raise ValueError(
                f"the VAE has {self.vae.latent_channels} latent channels, the transformers {self.latent_channels}: "
                "expected the same"
            )

    @property
    def vocabulary(self) -> int:
        """Values of an id (64,000)."""
        return math.prod(self.levels)

    @property
    def latent_size(self) -> int:
        """Side of the latents (32)."""
        return self.grid * self.patch_size

    @property
    def image_size(self) -> int:
        """Side of the images in pixels (256). Raises ValueError for a model without VAE."""
        if self.vae is None:
            raise ValueError("a FlexTok without VAE takes latents, not images")
        return self.latent_size * self.vae.downsample_factor


def published(encoder_depth: int, decoder_depth: int) -> FlexTokConfig:
    """The layout of a published checkpoint: depth d goes with width 64 d (d18-d28: 1152 and 1792)."""
    return FlexTokConfig(
        encoder=TransformerConfig(64 * encoder_depth, encoder_depth),
        decoder=TransformerConfig(64 * decoder_depth, decoder_depth),
        vae=VAEConfig(),
    )


def shape_differences(config: FlexTokConfig, expected: FlexTokConfig) -> list[str]:
    """What of `config` would give other tensors than `expected`: one "name is SEEN, expected WANTED" a field."""
    seen, wanted = _flat(dataclasses.asdict(config)), _flat(dataclasses.asdict(expected))
    return [
        f"{name} is {seen.get(name)}, expected {wanted.get(name)}"
        for name in seen | wanted
        if name not in NOT_SHAPE and seen.get(name) != wanted.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
