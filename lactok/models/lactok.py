"""LacTok as one network: frozen VQ encoder and quantizer, latent decoder, and the autoencoder in which that ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lactok.models.autoencoder import AutoencoderConfig, build_autoencoder
from lactok.models.ladd import LatentDecoder, LatentDecoderConfig
from lactok.models.samplers import NoiseSchedule, Sampler
from lactok.models.vq import Encoded, VQConfig, VQEncoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class LacTokConfig:
    """Sizes of a `LacTok`; the defaults are the released LaCTok-T's: LlamaGen's VQ-16, SDXL and its autoencoder."""

    vq: VQConfig = field(default_factory=VQConfig)
    decoder: LatentDecoderConfig = field(default_factory=LatentDecoderConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            if isinstance(value := getattr(self, name), Mapping):  # as a checkpoint's header holds it
                object.__setattr__(self, name, kind(**value))
        for what, seen, expected in (
            ("decoder.condition_channels", self.decoder.condition_channels, self.vq.codebook_embed_dim),
            ("decoder.unet.in_channels", self.decoder.unet.in_channels, self.autoencoder.latent_channels),
            ("decoder.pixels_per_latent", self.decoder.pixels_per_latent, self.autoencoder.downsample_factor),
        ):
            if seen != expected:
                raise ValueError(f"{what} is {seen}, expected {expected} as the other parts have it")

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the decoder's noise."""
        return self.decoder.schedule

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Shape (C, H, W) of the latents of a square image. Raises ValueError for a side that does not divide."""
        factor = self.autoencoder.downsample_factor * self.decoder.unet.downsample_factor
        if size < factor or size % factor:
            raise ValueError(f"image of {size} pixels a side: expected a positive multiple of {factor}")
        side = size // self.autoencoder.downsample_factor
        return self.autoencoder.latent_channels, side, side


_PARTS = {"vq": VQConfig, "decoder": LatentDecoderConfig, "autoencoder": AutoencoderConfig}


class LacTok(nn.Module):
    """Images (B, 3, H, W), RGB in [-1, 1], to ids (B, h, w), and those to images of another, larger size.

    vq: encoder and codebook (a whole `VQModel` will do). vae: anything with diffusers' `decode(latents).sample`; its
    latents are scaled by config.autoencoder.scaling_factor.
    """

    def __init__(self, config: LacTokConfig, vq: VQEncoder, decoder: LatentDecoder, vae: AutoencoderKL) -> None:
        super().__init__()
        self.config, self.vq, self.decoder, self.vae = config, vq, decoder, vae

    def encode(self, images: Tensor) -> Encoded:
        """Images (B, 3, H, W) in [-1, 1] to code embeddings. Raises ValueError for a size that does not divide."""
        return self.vq.encode(images)

    def lookup(self, ids: Tensor) -> Tensor:
        """Code embeddings (B, D, h, w) of int64 ids (B, h, w)."""
        return self.vq.lookup(ids)

    def decode_latents(self, embeddings: Tensor, noises: Tensor, sampler: Sampler, scale: float = 1.0) -> Tensor:
        """Code embeddings (B, D, h, w) and the sampler's noises (B, draws, C, H, W) to float32 latents (B, C, H, W)."""

        def predict(x: Tensor, t: int) -> Tensor:
            return self.decoder.predict(x, t, embeddings, scale)

        return sampler(predict, noises, self.config.schedule)

    def images_of(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W), scaled, to images around [-1, 1], float32, not clamped."""
        dtype = next(self.vae.parameters()).dtype
        return self.vae.decode((latents / self.config.autoencoder.scaling_factor).to(dtype)).sample.float()


def build_lactok(config: LacTokConfig) -> LacTok:
    """All parts anew; on the current default device."""
    return LacTok(config, VQEncoder(config.vq), LatentDecoder(config.decoder), build_autoencoder(config.autoencoder))
