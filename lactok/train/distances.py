"""Distances of reconstructions from images: the objectives' perceptual terms, and the training log's PSNR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lactok import registry
from lactok.feature_extractors import lpips


class PerceptualDistance(nn.Module):
    """Squared distance of channel-normalised features, averaged over places and stages (LPIPS' form, uncalibrated).

    stages: feature maps compared, 1 to 5, from 1/2 of the image's size on. Raises WeightsError when the network's
    package is missing.
    """

    def __init__(self, stages: int) -> None:
        super().__init__()
        with torch.device("cpu"):  # in a dry run, too: it ships, and has real weights or none
            self.network, self.stages = registry.load("features", "effnet-lite2")(), stages

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Both (B, 3, H, W), around [0, 1]; the gradient reaches `reconstructions` alone. float32 (B,)."""
        with torch.no_grad():
            wanted = self.network.stages(images, self.stages)
        got = self.network.stages(reconstructions, self.stages)
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean((1, 2))
            for a, b in zip(wanted, got, strict=True)
        ]
        return torch.stack(distances).mean(0)


class ScoringDistance(nn.Module):
    """LPIPS, as the paper's stage 2 trains on it. It scores, too: such rows are marked, and no miniature does it.

    net: "alex" or "vgg"; load: False for a network on the meta device, of which only sizes matter. Raises WeightsError
    when the backbone is not to be had.
    """

    def __init__(self, net: lpips.Net, load: bool = True) -> None:
        super().__init__()
        self.network = registry.load("features", f"lpips-{net}")() if load else lpips.skeleton(net)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Both (B, 3, H, W), around [0, 1]; (B,)."""
        return self.network(images * 2 - 1, reconstructions * 2 - 1).flatten()


def mean_psnr(outputs: Tensor, images: Tensor) -> float:
    """PSNR in dB of outputs (N, 3, H, W), clamped to [0, 1], against images of that shape; mean over images.

    Of floats, not of 8-bit images: for a training log, not for a table. At most 100 dB an image.
    """
    errors = (outputs.clamp(0, 1) - images).square().mean((1, 2, 3))
    return (-10 * errors.clamp_min(1e-10).log10()).mean().item()
