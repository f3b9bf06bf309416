"""TiTok: an image as a short row of ids (Yu et al., "An Image is Worth 32 Tokens", arXiv 2406.07550).

A ViT reads the patches together with learned latent tokens, of which each becomes an id; a second ViT turns the codes
into a grid of logits over the codebook of MaskGIT's VQGAN, whose pixel decoder paints their softmax-weighted mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.tokenizers.titok.pixel_decoder import PixelDecoder
from baselines.tokenizers.titok.vit import VIT_SIZES, TiTokDecoder, TiTokEncoder, ViTSize
from lactok.models.quantizer import QuantizerLosses, VectorQuantizer


@dataclass(frozen=True)
class TiTokConfig:
    """Architecture of a `TiTok`; the defaults are TiTok-S-128's, with the published names.

    image_size: side in pixels of the images (published as the preprocessing's crop size); fixed by the positions.
    codebook_size, token_size: shape of the codebook; use_l2_norm: compare and return unit vectors.
    commitment_cost: weight of the quantizer's commitment term.
    vit_enc_model_size, vit_dec_model_size: "small", "base" or "large", or (width, depth, heads).
    vit_enc_patch_size, vit_dec_patch_size: pixels of a side of a patch; the decoder's only gives its grid.
    num_latent_tokens: ids an image. is_legacy: see `TiTokEncoder`; the published S-128 is.
    pixel_codebook_size, pixel_token_size: shape of the pixel codebook.
    pixel_ch, pixel_ch_mult: base width of the pixel decoder, and the width of each level in units of it, highest
        resolution first; pixel_num_res_blocks: residual blocks a level; pixel_norm_num_groups: of its group norms;
        pixel_patch_size: side of the patches into which its last channels are shuffled (1: none, as published).
    """

    image_size: int = 256
    codebook_size: int = 4096
    token_size: int = 12
    use_l2_norm: bool = True
    commitment_cost: float = 0.25
    vit_enc_model_size: tuple[int, int, int] = (*VIT_SIZES["small"],)
    vit_dec_model_size: tuple[int, int, int] = (*VIT_SIZES["small"],)
    vit_enc_patch_size: int = 16
    vit_dec_patch_size: int = 16
    num_latent_tokens: int = 128
    is_legacy: bool = True
    pixel_codebook_size: int = 1024
    pixel_token_size: int = 256
    pixel_ch: int = 128
    pixel_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    pixel_num_res_blocks: int = 2
    pixel_norm_num_groups: int = 32
    pixel_patch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("vit_enc_model_size", "vit_dec_model_size"):
            object.__setattr__(self, name, ViTSize.of(getattr(self, name)))  # a name, or JSON's list
        object.__setattr__(self, "pixel_ch_mult", tuple(self.pixel_ch_mult))
        for name in ("vit_enc_patch_size", "vit_dec_patch_size"):
            if self.image_size % getattr(self, name):
                raise ValueError(f"image_size {self.image_size}: expected a multiple of {name} {getattr(self, name)}")

    @property
    def output_size(self) -> int:
        """Side in pixels of decoded images: the decoder's grid, doubled by every level but the last, of patches."""
        return self.image_size // self.vit_dec_patch_size * 2 ** (len(self.pixel_ch_mult) - 1) * self.pixel_patch_size


@dataclass(frozen=True)
class Encoded:
    """What `TiTok.encode` gives.

    quantized: float32 (B, token_size, 1, N), the codes, with the straight-through gradient (hence float noise away
    from `TiTok.lookup`); ids: int64 (B, 1, N); pre_quant: (B, token_size, 1, N), vectors before normalisation.
    """

    quantized: Tensor
    ids: Tensor
    pre_quant: Tensor


class TiTok(nn.Module):
    """Images (B, 3, S, S), RGB in [0, 1], to ids (B, 1, N) and back to (B, 3, output_size, output_size)."""

    def __init__(self, config: TiTokConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TiTokConfig()
        encoder_size, tokens = ViTSize.of(config.vit_enc_model_size), config.num_latent_tokens
        self.latent_tokens = nn.Parameter(encoder_size.width**-0.5 * torch.randn(tokens, encoder_size.width))
        self.encoder = TiTokEncoder(
            encoder_size,
            config.image_size // config.vit_enc_patch_size,
            config.vit_enc_patch_size,
            tokens,
            config.token_size,
            config.is_legacy,
        )
        self.quantize = VectorQuantizer(
            config.codebook_size,
            config.token_size,
            l2_norm=config.use_l2_norm,
            beta=config.commitment_cost,
            track_usage=False,
        )
        self.decoder = TiTokDecoder(
            ViTSize.of(config.vit_dec_model_size),
            config.image_size // config.vit_dec_patch_size,
            tokens,
            config.token_size,
            config.pixel_codebook_size,
        )
        self.pixel_quantize = VectorQuantizer(
            config.pixel_codebook_size, config.pixel_token_size, l2_norm=False, track_usage=False
        )
        self.pixel_decoder = PixelDecoder(
            config.pixel_token_size,
            config.pixel_ch,
            config.pixel_ch_mult,
            config.pixel_num_res_blocks,
            config.pixel_norm_num_groups,
            config.pixel_patch_size,
        )

    def pre_quant(self, images: Tensor) -> Tensor:
        """Encoder's vectors (B, token_size, 1, N) before normalisation. Raises ValueError for another image size."""
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            height, width = images.shape[-2:]
            raise ValueError(f"image of {width}x{height} pixels, expected {size}x{size}: the positions are fixed")
        return self.encoder(images, self.latent_tokens)

    def encode(self, images: Tensor) -> Encoded:
        """Images (B, 3, S, S) in [0, 1] to codes. Raises ValueError as `pre_quant`."""
        pre_quant = self.pre_quant(images)
        quantized, ids = self.quantize(pre_quant)
        return Encoded(quantized, ids, pre_quant)

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes (B, token_size, 1, N) of int64 ids (B, 1, N) in [0, codebook_size)."""
        return self.quantize.lookup(ids)

    def decode_logits(self, quantized: Tensor) -> Tensor:
        """Codes (B, token_size, 1, N) to logits (B, pixel_codebook_size, h, w) over the pixel codebook."""
        return self.decoder(quantized.to(self.latent_tokens.dtype))

    def soft_codes(self, logits: Tensor) -> Tensor:
        """The mean of the pixel codes (B, pixel_token_size, h, w), weighted by the softmax of the logits."""
        mean = torch.einsum("bchw,cd->bdhw", logits.softmax(1), self.pixel_quantize.embedding.weight)
        return mean.contiguous(memory_format=torch.channels_last)  # one memory layout, whatever the batch

    def paint(self, pixel_codes: Tensor) -> Tensor:
        """Pixel codes (B, pixel_token_size, h, w) to images around [0, 1], not clamped."""
        return self.pixel_decoder(pixel_codes)

    def decode(self, quantized: Tensor) -> Tensor:
        """Codes (B, token_size, 1, N) to images (B, 3, output_size, output_size) around [0, 1], not clamped."""
        return self.paint(self.soft_codes(self.decode_logits(quantized)))

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Ids (B, 1, N) to images; see `lookup` and `decode`."""
        return self.decode(self.lookup(ids))

    def quantizer_losses(self, pre_quant: Tensor, ids: Tensor | None = None) -> QuantizerLosses:
        """The quantizer's training terms for vectors (B, token_size, 1, N); ids (B, 1, N) spares the search."""
        return self.quantize.losses(pre_quant, ids)
