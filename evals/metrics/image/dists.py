"""DISTS (Ding et al. 2020): how alike two images are in structure and in texture, on VGG-16 with L2 pooling.

The definition is that of the authors' package (DISTS-pytorch 0.1) at the images' own size. For each channel of the
image and of five stages, the means of the two maps are compared (texture) and their covariance with their variances
(structure); alpha and beta weigh the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evals.metrics.base import Column, ImageMetric, require_side
from lactok import registry
from lactok.feature_extractors.dists import CHANNELS, Dists, sources
from lactok.interface import Item
from lactok.weights import WeightsSource

C1 = C2 = 1e-6  # the package's
SMALLEST = 16  # pixels a side; with fewer the last stage's one position is mostly padding


@dataclass(frozen=True)
class DistsEmbedding:
    """Of the image and of each stage: centred maps (B, C, h, w), and their means and variances (B, C)."""

    centred: tuple[Tensor, ...]
    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]


class DistsMetric(ImageMetric):
    """DISTS of each image, at its own size. Memory: all activations, 820 MB an image at 1024x1024."""

    name = "dists"
    summary = "DISTS: structure and texture, VGG-16"
    shares_network_with = ("lpips-vgg", "lpips")
    columns = (Column("DISTS", "lower", digits=4, note="Ding et al. 2020, at evaluation size"),)

    def __init__(self, module: Dists) -> None:
        """module: from lactok.feature_extractors.dists."""
        self.module = module.to(memory_format=torch.channels_last)

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        return sources()

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> DistsMetric:
        """With the published network."""
        return cls(registry.load("features", "dists")(device))

    @torch.no_grad()
    def embed(self, images: Tensor, items: Sequence[Item]) -> DistsEmbedding:
        """images: uint8 (B, 3, H, W). Raises ValueError for sides under SMALLEST."""
        require_side(images, SMALLEST, "DISTS")
        maps = self.module((images.float() / 255).contiguous(memory_format=torch.channels_last))
        means = [x.mean(dim=(2, 3), keepdim=True) for x in maps]
        centred = tuple(x - mean for x, mean in zip(maps, means, strict=True))
        variances = tuple(x.square().mean(dim=(2, 3)) for x in centred)
        return DistsEmbedding(centred, tuple(mean[:, :, 0, 0] for mean in means), variances)

    @torch.no_grad()
    def score(self, reference: DistsEmbedding, embedding: DistsEmbedding, items: Sequence[Item]) -> dict[str, Tensor]:
        """The column's values, float64 (B,); 0 for an image equal to its reference. Raises ValueError when the images'
        shapes differ."""
        x, y = reference, embedding
        if x.centred[0].shape != y.centred[0].shape:
            raise ValueError(f"images of shapes {tuple(x.centred[0].shape)} and {tuple(y.centred[0].shape)}")
        alike = torch.zeros(len(x.means[0]), dtype=torch.float64, device=x.means[0].device)
        alpha, beta = (weights.double().split(CHANNELS) for weights in (self.module.alpha, self.module.beta))
        total = self.module.alpha.double().sum() + self.module.beta.double().sum()
        for stage in range(len(CHANNELS)):
            a, b = x.means[stage].double(), y.means[stage].double()
            texture = (2 * a * b + C1) / (a.square() + b.square() + C1)
            covariance = (x.centred[stage] * y.centred[stage]).mean(dim=(2, 3)).double()
            spread = x.variances[stage].double() + y.variances[stage].double()
            structure = (2 * covariance + C2) / (spread + C2)
            alike += (alpha[stage] * texture + beta[stage] * structure).sum(dim=1)
        return {"DISTS": 1 - alike / total}
