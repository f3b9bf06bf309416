"""The two vision transformers of TiTok: images to latent tokens, and quantized latent tokens to a grid of logits.

Bidirectional pre-norm blocks (timm's) over [class token, patches, latent tokens]; paper: arXiv 2406.07550, section 3;
facts: bytedance/1d-tokenizer, modeling/modules/blocks.py. state_dict.py names the checkpoint's tensors.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

MLP_RATIO = 4.0
"""Hidden width of a block's MLP, in widths (published code)."""

INIT_STD = 0.02
"""Of the truncated normal from which linear layers and convolutions start (published code)."""


class ViTSize(NamedTuple):
    """Width, number of blocks, attention heads of a transformer; a list of the three in JSON."""

    width: int
    depth: int
    heads: int

    @staticmethod
    def of(value: str | list[int] | tuple[int, int, int]) -> ViTSize:
        """A published size by its name, or three numbers. Raises ValueError for anything else."""
        if isinstance(value, str) and value in VIT_SIZES:
            return VIT_SIZES[value]
        if isinstance(value, list | tuple) and len(value) == 3:
            return ViTSize(*value)
        raise ValueError(f"size {value!r}: expected one of {', '.join(VIT_SIZES)}, or [width, depth, heads]")


VIT_SIZES = {"small": ViTSize(512, 8, 8), "base": ViTSize(768, 12, 12), "large": ViTSize(1024, 24, 16)}
"""The sizes with which TiTok is published (published code)."""


class _LatentViT(nn.Module):
    """What encoder and decoder share: positions, the normalisation in front, the blocks, the normalisation behind."""

    def __init__(self, size: ViTSize, grid: int, num_latent_tokens: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.grid = grid
        scale = size.width**-0.5  # published initialisation
        self.class_embedding = nn.Parameter(scale * torch.randn(1, size.width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(grid**2 + 1, size.width))
        self.latent_token_positional_embedding = nn.Parameter(scale * torch.randn(num_latent_tokens, size.width))
        norm = cast(type[nn.LayerNorm], partial(nn.LayerNorm, eps=1e-5))  # timm annotates a class, and takes any maker
        self.ln_pre = norm(size.width)
        self.transformer = nn.Sequential(
            *(Block(size.width, size.heads, MLP_RATIO, qkv_bias=True, norm_layer=norm) for _ in range(size.depth))
        )
        self.ln_post = norm(size.width)

    def _attend(self, patches: Tensor, latents: Tensor) -> Tensor:
        """Patches (B, grid^2, W) and latents (B, N, W), without positions, to (B, 1 + grid^2 + N, W)."""
        patches = torch.cat([self.class_embedding.expand(len(patches), -1, -1), patches], dim=1)
        sequence = [patches + self.positional_embedding, latents + self.latent_token_positional_embedding]
        return self.transformer(self.ln_pre(torch.cat(sequence, dim=1)))


class TiTokEncoder(_LatentViT):
    """Images (B, 3, H, H) to vectors (B, token_size, 1, N) before quantization.

    legacy: reshape tokens to channels where they should be transposed, as the code of the released weights does.
    """

    def __init__(
        self, size: ViTSize, grid: int, patch_size: int, num_latent_tokens: int, token_size: int, legacy: bool
    ) -> None:
        super().__init__(size, grid, num_latent_tokens)
        self.legacy = legacy
        self.patch_embed = nn.Conv2d(3, size.width, patch_size, stride=patch_size)
        self.conv_out = nn.Conv2d(size.width, token_size, 1)
        self.apply(_init)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        """latent_tokens: (N, W), the learned queries."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)  # row by row
        x = self._attend(patches, latent_tokens.expand(len(images), -1, -1))
        x = self.ln_post(x[:, 1 + self.grid**2 :])
        batch, count, width = x.shape
        x = x.reshape(batch, width, count, 1) if self.legacy else x.transpose(1, 2).unsqueeze(-1).contiguous()
        return self.conv_out(x).reshape(batch, -1, 1, count)


class TiTokDecoder(_LatentViT):
    """Codes (B, token_size, 1, N) to logits (B, pixel_codebook_size, grid, grid) over the pixel codebook."""

    def __init__(
        self, size: ViTSize, grid: int, num_latent_tokens: int, token_size: int, pixel_codebook_size: int
    ) -> None:
        super().__init__(size, grid, num_latent_tokens)
        self.decoder_embed = nn.Linear(token_size, size.width)
        self.mask_token = nn.Parameter(size.width**-0.5 * torch.randn(1, 1, size.width))
        self.ffn = nn.Sequential(
            nn.Conv2d(size.width, 2 * size.width, 1), nn.Tanh(), nn.Conv2d(2 * size.width, pixel_codebook_size, 1)
        )
        self.apply(_init)

    def forward(self, quantized: Tensor) -> Tensor:
        latents = self.decoder_embed(quantized.flatten(2).transpose(1, 2))
        x = self._attend(self.mask_token.expand(len(latents), self.grid**2, -1), latents)
        x = self.ln_post(x[:, 1 : 1 + self.grid**2])
        x = x.transpose(1, 2).contiguous()  # one layout: else a lone image takes other kernels
        return self.ffn(x.unflatten(2, (self.grid, self.grid)))


def _init(module: nn.Module) -> None:
    """The published initialisation of the layers (norms start as they are)."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        assert module.bias is not None, "a layer without bias, expected those of TiTok, which all have one"
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)
