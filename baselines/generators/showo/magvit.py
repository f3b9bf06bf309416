"""MAGVITv2, Show-o's image tokenizer: a convolutional autoencoder whose codes are the signs of the latent's channels.

Stock diffusers `Encoder` and `Decoder` compute the published network once their levels have the published numbers of
blocks, which differ from level to level. Facts from the published models/modeling_magvitv2.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_GROUPS, _EPS = 32, 1e-6  # of every group norm (published models/common_modules.py)


@dataclass(frozen=True)
class HalfConfig:
    """Encoder or decoder. ch: base width; ch_mult: width of each level, highest resolution first, in units of ch;
    num_res_blocks: residual blocks of each level, in the same order."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 4, 4)
    num_res_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)

    def __post_init__(self) -> None:
        for name in ("ch_mult", "num_res_blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
        if len(self.ch_mult) != len(self.num_res_blocks):
            raise ValueError(
                f"ch_mult has {len(self.ch_mult)} levels, num_res_blocks {len(self.num_res_blocks)}: expected the same"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.ch * mult for mult in self.ch_mult)


@dataclass(frozen=True)
class MagvitConfig:
    """Architecture of a `Magvit`; the defaults are the published ones. codebook_dim: bits of a code."""

    codebook_dim: int = 13
    encoder: HalfConfig = HalfConfig()
    decoder: HalfConfig = field(
        default_factory=lambda: HalfConfig(ch_mult=(1, 1, 2, 2, 4), num_res_blocks=(4, 4, 3, 4, 3))
    )

    def __post_init__(self) -> None:
        if len(self.encoder.ch_mult) != len(self.decoder.ch_mult):
            raise ValueError("encoder and decoder have different numbers of levels: expected the same")

    @property
    def codebook_size(self) -> int:
        """Values of a code (8192)."""
        return 2**self.codebook_dim

    @property
    def downsample_factor(self) -> int:
        """Pixels of a code's side (16): every level but the last halves."""
        return 2 ** (len(self.encoder.ch_mult) - 1)


def code_vectors(bits: int) -> Tensor:
    """The vectors float32 (2^bits, bits) of all codes: +1 where a bit is set, else -1; the first is the highest bit."""
    places = torch.arange(bits - 1, -1, -1)
    return ((torch.arange(2**bits)[:, None] >> places) & 1).float() * 2 - 1


class Magvit(nn.Module):
    """Images (B, 3, H, W), RGB in [-1, 1], to codes (B, h w), row by row, and back; h = H / downsample_factor."""

    codes: Tensor

    def __init__(self, config: MagvitConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MagvitConfig()
        bits = config.codebook_dim
        self.encoder, self.decoder = _encoder(config.encoder, bits), _decoder(config.decoder, bits)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(bits, bits, 1), nn.Conv2d(bits, bits, 1)
        self.register_buffer("codes", code_vectors(bits))

    def latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to the values (B, bits, h, w) whose signs are the codes' bits."""
        return self.quant_conv(self.encoder(images))

    def quantize(self, latents: Tensor) -> Tensor:
        """Codes int64 (B, h w) of values (B, bits, h, w): a bit is set where the value is above 0."""
        weights = 2 ** torch.arange(self.config.codebook_dim - 1, -1, -1, device=latents.device)
        return ((latents > 0) * weights[:, None, None]).sum(1).flatten(1)

    def lookup(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Vectors (B, bits, height, width) of codes int64 (B, height x width)."""
        return self.codes[codes].unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous()

    def decode(self, vectors: Tensor) -> Tensor:
        """Vectors (B, bits, h, w) to images (B, 3, H, W) around [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(vectors))

    def decode_codes(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes (B, height x width) to images; those out of range count as the nearest that is."""
        return self.decode(self.lookup(codes.clamp(0, self.config.codebook_size - 1), height, width))


def _encoder(config: HalfConfig, bits: int) -> nn.Module:
    from diffusers.models.autoencoders.vae import Encoder
    from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D

    widths = config.widths
    encoder = Encoder(3, bits, ("DownEncoderBlock2D",) * len(widths), widths, 1, _GROUPS, double_z=False)
    encoder.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
    encoder.down_blocks = nn.ModuleList(
        DownEncoderBlock2D(
            before,
            width,
            num_layers=blocks,
            resnet_eps=_EPS,
            resnet_groups=_GROUPS,
            add_downsample=level < len(widths) - 1,
            downsample_padding=0,  # then it pads right and bottom by one
        )
        for level, (before, width, blocks) in enumerate(zip((config.ch, *widths), widths, config.num_res_blocks))
    )
    return encoder


def _decoder(config: HalfConfig, bits: int) -> nn.Module:
    from diffusers.models.autoencoders.vae import Decoder
    from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D

    widths = config.widths[::-1]
    decoder = Decoder(bits, 3, ("UpDecoderBlock2D",) * len(widths), config.widths, 0, _GROUPS)
    decoder.up_blocks = nn.ModuleList(
        UpDecoderBlock2D(
            before,
            width,
            num_layers=blocks,
            resnet_eps=_EPS,
            resnet_groups=_GROUPS,
            add_upsample=level < len(widths) - 1,
        )
        for level, (before, width, blocks) in enumerate(zip((widths[0], *widths), widths, config.num_res_blocks[::-1]))
    )
    return decoder
