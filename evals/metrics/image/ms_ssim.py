"""MS-SSIM (Wang et al. 2003) of RGB uint8: five scales, the 11-tap Gaussian window, data range 255, mean over channels.

Between two scales the image is the mean of 2x2 blocks; a side of odd length repeats its last row or column first, as
in Wang's own code (`imfilter(..., 'symmetric')`, then every second pixel). Where all five sizes are even the common
implementations agree; where one is odd they pad with zeros or leave pixels out, each as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.metrics.base import Column, ImageMetric, require_side
from evals.metrics.image.ssim import C1, C2, RADIUS, gaussian_mean
from lactok.interface import Item

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, of the five scales, finest first
SMALLEST = 2 * RADIUS * 2 ** (len(WEIGHTS) - 1) + 1
"""161 pixels a side: the window must fit into the coarsest scale."""


@dataclass(frozen=True)
class MsSsimEmbedding:
    """Of each scale, float64: pixels (B x 3, h, w), and the windows' means of pixels and of their squares,
    (B x 3, h - 10, w - 10)."""

    pixels: tuple[Tensor, ...]
    means: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]


class MsSsim(ImageMetric):
    """MS-SSIM of each image. Memory: 100 MB an image at 1024x1024."""

    name = "ms-ssim"
    summary = "MS-SSIM: five scales, 11-tap Gaussian window; from 161 pixels a side"
    columns = (
        Column(
            "MS-SSIM",
            "higher",
            digits=4,
            note="Wang et al. 2003; RGB mean, data range 255",
            blind_to=("cast", "brighter"),  # lightness counts at the coarsest scale alone
        ),
    )

    def embed(self, images: Tensor, items: Sequence[Item]) -> MsSsimEmbedding:
        """images: uint8 (B, 3, H, W). Raises ValueError for sides under SMALLEST."""
        require_side(images, SMALLEST, "MS-SSIM")
        x = images.flatten(0, 1).double()
        pixels = [x]
        for _ in WEIGHTS[1:]:
            pixels.append(_halved(pixels[-1]))
        means = tuple(gaussian_mean(x) for x in pixels)
        return MsSsimEmbedding(tuple(pixels), means, tuple(gaussian_mean(x.square()) for x in pixels))

    def score(self, reference: MsSsimEmbedding, embedding: MsSsimEmbedding, items: Sequence[Item]) -> dict[str, Tensor]:
        """The column's values, float64 (B,). A scale whose mean contrast-structure is negative counts as 0. Raises
        ValueError when shapes differ."""
        x, y = reference, embedding
        if x.pixels[0].shape != y.pixels[0].shape:
            raise ValueError(f"images of {tuple(x.pixels[0].shape[1:])} and {tuple(y.pixels[0].shape[1:])} pixels")
        found = torch.ones(len(x.pixels[0]), dtype=torch.float64, device=x.pixels[0].device)
        for scale, weight in enumerate(WEIGHTS):
            a, b = x.means[scale], y.means[scale]
            covariance = gaussian_mean(x.pixels[scale] * y.pixels[scale]) - a * b
            variances = x.squares[scale] + y.squares[scale] - a.square() - b.square()
            similarity = (2 * covariance + C2) / (variances + C2)
            if scale == len(WEIGHTS) - 1:  # luminance counts at the coarsest scale alone
                similarity = similarity * (2 * a * b + C1) / (a.square() + b.square() + C1)
            found *= similarity.mean(dim=(1, 2)).clamp_(min=0) ** weight
        return {"MS-SSIM": found.view(-1, 3).mean(dim=1)}


def _halved(x: Tensor) -> Tensor:
    """Means of 2x2 blocks: (C, h, w) to half of it, rounded up."""
    height, width = x.shape[-2:]
    return F.avg_pool2d(F.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2)
