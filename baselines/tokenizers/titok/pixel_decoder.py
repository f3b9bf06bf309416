"""The pixel decoder of MaskGIT's VQGAN (arXiv 2202.04200), as TiTok carries it: codes of a grid to an image.

Not diffusers' decoder: no attention, convolutions without bias, and another shortcut (see `_ResidualBlock`).
Facts: bytedance/1d-tokenizer, modeling/modules/maskgit_vqgan.py, whose tensor names these modules have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lactok.models.vq import nearest_init

NORM_EPS = 1e-6
"""Of every group norm (published code)."""


class _ResidualBlock(nn.Module):
    """norm, SiLU, 3x3 convolution, twice, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut = (
            None if in_channels == out_channels else nn.Conv2d(out_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        # Where the width changes, the published shortcut takes the branch, not the input; the weights know no other.
        return branch + (x if self.nin_shortcut is None else self.nin_shortcut(branch))


class _Level(nn.Module):
    """Residual blocks at one resolution, then nearest-neighbour x2 up-sampling unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, norm_groups: int, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(_ResidualBlock(a, b, norm_groups) for a, b in pairwise(widths))
        self.upsample_conv = None if last else nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample_conv is None else self.upsample_conv(F.interpolate(x, scale_factor=2.0))


class PixelDecoder(nn.Module):
    """Codes (B, in_channels, h, w) to RGB (B, 3, H, W) around [0, 1]; H = h x 2^(levels - 1) x patch_size.

    ch: base width; ch_mult: width of each level in units of ch, highest resolution first.
    patch_size: side of the patches into which the last convolution's channels are shuffled; 1 for the published one.
    """

    def __init__(
        self,
        in_channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        norm_groups: int,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        deepest = widths[-1]
        self.conv_in = nn.Conv2d(in_channels, deepest, 3, padding=1)
        self.mid = nn.Sequential(*(_ResidualBlock(deepest, deepest, norm_groups) for _ in range(2)))
        below = [*widths[1:], deepest]
        self.up = nn.ModuleList(  # indexed as published: level 0 has the full resolution and runs last
            _Level(below[i], widths[i], num_res_blocks, norm_groups, last=i == 0) for i in range(len(widths))
        )
        self.norm_out = nn.GroupNorm(norm_groups, widths[0], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3 * patch_size**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(patch_size)
        nearest_init(self.conv_out, patch_size**2)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid(self.conv_in(codes))
        for level in reversed(self.up):
            x = level(x)
        return self.shuffle(self.conv_out(F.silu(self.norm_out(x))))
