"""HART's image tokenizer: an autoencoder whose latents are a sum of quantized maps of growing size, and a residual.

Stock diffusers `Encoder` and `Decoder` compute the published network (attention at the lowest resolution). Facts from
the published hart_autoencoder.py, var_quantize_multiple_res.py and hart_hybrid_quantize.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.generators.hart.config import TokenizerConfig

_RESNETS, _GROUPS = 2, 32  # per level, and of every group norm (the published code fixes both)


@dataclass(frozen=True)
class Quantized:
    """Of latents (B, C, h, h). ids: int64 (B, n) a scale; sum: (B, C, h, h), that of all maps; rest: what they leave;
    before_last: what was left before the last map; loss: the quantizer's training loss, a scalar."""

    ids: list[Tensor]
    sum: Tensor
    rest: Tensor
    before_last: Tensor
    loss: Tensor


class HartTokenizer(nn.Module):
    """Images (B, 3, H, H), RGB in [-1, 1], to latents (B, C, h, h) with h = H / downsample_factor, and back."""

    def __init__(self, config: TokenizerConfig) -> None:
        from diffusers.models.autoencoders.vae import Decoder, Encoder

        super().__init__()
        self.config = config
        channels, kernel = config.z_channels, config.quant_conv_ks
        widths = tuple(config.ch * mult for mult in config.ch_mult)
        plain = len(widths) - 1
        down = (*("DownEncoderBlock2D",) * plain, "AttnDownEncoderBlock2D")
        up = ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * plain)
        self.encoder = Encoder(3, channels, down, widths, _RESNETS, _GROUPS, double_z=False)
        self.decoder = Decoder(channels, 3, up, widths, _RESNETS, _GROUPS)
        self.quant_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.embedding = nn.Embedding(config.vocab_size, channels)
        count = config.convolutions
        self.residual = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count))
        edge = 1 / (3 if count == 4 else 2) / max(count, 1)
        self._ticks = np.linspace(edge, 1 - edge, count)

    def latents(self, images: Tensor) -> Tensor:
        """Images to latents."""
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images around [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents))

    def contribution(self, maps: Tensor, scale: int, scales: int, side: int, residual: bool = True) -> Tensor:
        """What the map (B, C, n, n) of a scale adds to latents of `side`: bicubic, then its share of a convolution."""
        full = F.interpolate(maps, size=(side, side), mode="bicubic")
        if not residual or not len(self.residual):
            return full
        share = abs(self.config.quant_resi)
        nearest = int(np.argmin(np.abs(self._ticks - scale / (scales - 1))))
        return full * (1 - share) + self.residual[nearest](full) * share

    def map_of(self, ids: Tensor) -> Tensor:
        """Ids (B, n n) to the map (B, C, n, n) of their codes."""
        side = round(ids.shape[1] ** 0.5)
        return self.embedding(ids).transpose(1, 2).unflatten(2, (side, side))

    def nearest(self, vectors: Tensor, normalised: bool) -> Tensor:
        """Ids (N,) of the codes nearest to vectors (N, C), by distance, or by angle."""
        codes = self.embedding.weight
        if normalised:
            return (F.normalize(vectors, dim=-1) @ F.normalize(codes.T, dim=0)).argmax(1)
        lengths = vectors.square().sum(1, keepdim=True) + codes.square().sum(1)
        return torch.addmm(lengths, vectors, codes.T, alpha=-2).argmin(1)

    def quantize(
        self,
        latents: Tensor,
        sides: Sequence[int] | None = None,
        hybrid_target: bool = False,
        known: Mapping[int, Tensor] | None = None,
    ) -> Quantized:
        """Latents to maps of all scales, each of what the coarser ones leave.

        sides: of the maps, the configuration's by default. hybrid_target: as the transformer's training targets are
        made: no convolution at the last scale, and codes by distance always. known: ids (B, n) of scales that are to
        be used in place of those found; the found ones are given all the same.
        """
        sides, known = sides or self.config.v_patch_nums, known or {}
        scales, side = len(sides), latents.shape[-1]
        rest, total, loss = latents, torch.zeros_like(latents), latents.new_zeros(())
        before_last, found = rest, []
        for scale, n in enumerate(sides):
            vectors = F.interpolate(rest, size=(n, n), mode="area").permute(0, 2, 3, 1).flatten(0, 2)
            normalised = self.config.using_znorm and not hybrid_target
            found.append(self.nearest(vectors, normalised).view(len(latents), n * n))
            residual = not (hybrid_target and scale == scales - 1)
            added = self.contribution(self.map_of(known.get(scale, found[-1])), scale, scales, side, residual)
            before_last, rest, total = rest, rest - added, total + added
            loss = loss + (1 + self.config.beta) * F.mse_loss(total, latents)
        return Quantized(found, total, rest, before_last, loss / scales)

    def sums(self, ids: Sequence[Tensor], side: int) -> list[Tensor]:
        """The sum (B, C, side, side) of all maps up to each scale, from the ids (B, n) of all scales."""
        total = torch.zeros(len(ids[0]), self.config.z_channels, side, side, device=ids[0].device)
        sums = []
        for scale, one in enumerate(ids):
            total = total + self.contribution(self.map_of(one), scale, len(ids), side)
            sums.append(total)
        return sums
