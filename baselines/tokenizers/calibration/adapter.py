"""Calibration rows: what a table's figures mean at their best, at their floor, and for a trivial code of equal rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lactok.interface import Latents, Tokenizer, TokenizerInfo, Tokens


class _PassThrough(Tokenizer):
    """Gives back what it got; only the protocol's resizing acts. The latents are the pixels, of undefined rate."""

    code_licence = "Apache-2.0"
    weights_licence = "none needed"
    size: int | None = None

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo("calibration", None, None, input_size=self.size, output_size=self.size)

    def encode(self, images: Tensor) -> Latents:
        return Latents(images)

    def decode(self, latents: Latents, seeds: Sequence[int]) -> Tensor:
        return latents.values


class Identity(_PassThrough):
    """The image itself: every metric at its best."""

    calibration = -3


class Resize64(_PassThrough):
    """To 64 pixels and back: what is lost before any miniature acts."""

    calibration = -2
    scale = "mini"
    size = 64


class Resize256(_PassThrough):
    """To 256 pixels and back: what is lost before any published tokenizer acts."""

    calibration = -1
    scale = "paper"
    size = 256


class MeanColour(Tokenizer):
    """One colour for the whole image, 8 bits a channel: the floor."""

    calibration = 2
    code_licence = "Apache-2.0"
    weights_licence = "none needed"

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo("calibration", tokens_per_image=3, codebook_size=256, input_size=None, output_size=16)

    def encode(self, images: Tensor) -> Tokens:
        mean = images.mean(dim=(2, 3))
        return Tokens((mean * 255 + 0.5).floor().clamp(0, 255).long())

    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        return (tokens.ids.float() / 255)[:, :, None, None].expand(-1, -1, 16, 16)


# One RGB pixel of two levels a channel.
LEAST_BITS = 3


@dataclass
class ThumbnailOptions:
    """bits: the rate to spend on an image; 3584 is that of 256 ids of 16384 (LlamaGen VQ-16 at 256 px)."""

    bits: int = 3584


class DownsampleBits(Tokenizer):
    """A thumbnail with quantised colours that spends the same number of bits as a tokenizer's ids.

    Of all (side, levels) whose code fits into `bits`, it takes the one that keeps about `TARGET_LEVELS` levels a
    channel: below that banding costs more than the pixels gain, above it pixels are worth more.
    """

    Options = ThumbnailOptions
    # what the reference tokenizer's tokens cost: llamagen-mini (64 x 10 bits), llamagen (256 x 14)
    preset_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mini": {"bits": 640}, "paper": {"bits": 3584}}
    calibration = 1
    code_licence = "Apache-2.0"
    weights_licence = "none needed"
    TARGET_LEVELS = 16

    def __init__(self, options: ThumbnailOptions, device: torch.device) -> None:
        super().__init__(options, device)
        self.side, self.levels = thumbnail_grid(options.bits, self.TARGET_LEVELS)

    @property
    def info(self) -> TokenizerInfo:
        return TokenizerInfo(
            "calibration",
            tokens_per_image=3 * self.side**2,
            codebook_size=self.levels,
            input_size=None,
            output_size=self.side,
        )

    @classmethod
    def at_rate(cls, bits: float) -> Mapping[str, Any] | None:
        """To the nearest bit, as tables show a rate."""
        return {"bits": round(bits)} if bits >= LEAST_BITS else None

    @classmethod
    def same_as(cls, options: ThumbnailOptions) -> tuple[int, int]:
        """The thumbnail's side and levels: different numbers of bits may pay for the same."""
        return thumbnail_grid(options.bits, cls.TARGET_LEVELS)

    def encode(self, images: Tensor) -> Tokens:
        small = F.interpolate(images, size=(self.side, self.side), mode="area")
        return Tokens((small * (self.levels - 1)).round().long().flatten(1))

    def decode(self, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
        return tokens.ids.float().view(-1, 3, self.side, self.side) / (self.levels - 1)


def thumbnail_grid(bits: int, target_levels: int) -> tuple[int, int]:
    """(side, levels): the largest square RGB thumbnail with at least `target_levels` levels that `bits` pays for, and
    as many levels (at most 256) as then fit.

    Raises ValueError when not even one pixel of two levels fits.
    """
    if bits < LEAST_BITS:
        raise ValueError(
            f"downsample-bits: bits={bits} can't pay for one RGB pixel of two levels; give at least {LEAST_BITS}"
        )
    side = 1
    while 3 * (side + 1) ** 2 * math.log2(target_levels) <= bits:
        side += 1
    levels = int(2 ** min(8.0, bits / (3 * side**2)) + 1e-9)
    return side, max(2, levels)
