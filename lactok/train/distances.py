"""Distances of reconstructions from images: the objectives' perceptual terms, and the training log's PSNR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lactok import registry
from lactok.feature_extractors import imagenet, lpips
from lactok.weights import LocalWeights, WeightsSource, load_state_dict, locate

NETWORKS: Mapping[str, lpips.Net | None] = {"effnet-lite2": None, "lpips-vgg": "vgg", "lpips-alex": "alex"}
"""Perceptual networks by name. LPIPS scores, too; the tables' LPIPS is AlexNet's, with which no miniature trains."""


@dataclass
class PerceptualOptions:
    """The perceptual term of an objective.

    perceptual: its weight; 0 leaves the network unloaded.
    perceptual_network: "effnet-lite2" (feature distance of EfficientNet-Lite2, which scores nothing), "lpips-vgg" (a
        row that was trained on it says so) or "lpips-alex" (which scores; no miniature takes it).
    perceptual_stages: effnet-lite2's feature maps that are compared, 1 to 5, from 1/2 of the image's size on.
    perceptual_size: pixels a side to which both images are enlarged for the network; null: as they are.
    perceptual_weights: a safetensors file with VGG-16's feature layers under torchvision's names in place of the
        published one (float32 or less; see `save_half_backbone`); null: the published one.
    """

    perceptual: float = 1.0
    perceptual_network: str = "effnet-lite2"
    perceptual_stages: int = 4
    perceptual_size: int | None = None
    perceptual_weights: str | None = None

    def __post_init__(self) -> None:
        if self.perceptual_network not in NETWORKS:
            raise ValueError(f"perceptual_network={self.perceptual_network}: expected one of {', '.join(NETWORKS)}")
        if self.perceptual_weights and NETWORKS[self.perceptual_network] is None:
            raise ValueError(
                f"perceptual_weights={self.perceptual_weights}: {self.perceptual_network} comes with its own; leave it "
                "out"
            )

        if self.perceptual_size is not None and self.perceptual_size < 16:
            raise ValueError(f"perceptual_size={self.perceptual_size}: expected 16 pixels or more, or null")

    def refuse_scoring_network(self, what: str) -> None:
        """Raises ValueError for the network of the tables' LPIPS."""
        if self.perceptual_network == "lpips-alex":
            raise ValueError(
                f"perceptual_network=lpips-alex: it scores, and {what} is not trained on what scores it; expected "
                "lpips-vgg or effnet-lite2"
            )

    def perceptual_sources(self) -> tuple[WeightsSource, ...]:
        """The files of LPIPS, where it trains."""
        net = NETWORKS[self.perceptual_network] if self.perceptual else None
        if net is None:
            return ()
        backbone, linear = lpips.sources(net)
        return (LocalWeights(self.perceptual_weights) if self.perceptual_weights else backbone), linear

    @property
    def losses(self) -> tuple[str, ...]:
        """TrainingCompute.losses of an export: LPIPS where it has a part in the loss."""
        return (self.perceptual_network,) if self.perceptual and NETWORKS[self.perceptual_network] else ()


class FeatureDistance(nn.Module):
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


class LPIPSDistance(nn.Module):
    """LPIPS, as the paper's stage 2 trains on it (which network the paper does not say).

    net: "alex" or "vgg"; weights: see `PerceptualOptions`; load: False for a network on the meta device, of which only
    sizes matter. Raises WeightsError when the backbone is not available.
    """

    def __init__(self, net: lpips.Net, weights: str | None = None, load: bool = True) -> None:
        super().__init__()
        if not load:
            self.network = lpips.skeleton(net)
        elif weights is None:
            self.network = registry.load("features", f"lpips-{net}")()
        else:
            self.network = lpips.build(net, lpips.backbone_state(net, load_state_dict(locate(LocalWeights(weights)))))

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Both (B, 3, H, W), around [0, 1]; (B,)."""
        return self.network(images * 2 - 1, reconstructions * 2 - 1).flatten()


class PerceptualDistance(nn.Module):
    """The distance that the options name, of images as they are or enlarged; zeros, without a network, at weight 0."""

    def __init__(self, options: PerceptualOptions, load: bool = True) -> None:
        super().__init__()
        net = NETWORKS[options.perceptual_network]
        self.size = options.perceptual_size
        self.distance: nn.Module | None = None
        if options.perceptual:
            self.distance = (
                FeatureDistance(options.perceptual_stages)
                if net is None
                else LPIPSDistance(net, options.perceptual_weights, load)
            )

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Both (B, 3, H, W), around [0, 1]; the gradient reaches `reconstructions` alone. (B,)."""
        if self.distance is None:
            return images.new_zeros(len(images))
        if self.size is not None:
            size = (self.size, self.size)
            images, reconstructions = (
                F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (images, reconstructions)
            )
        return self.distance(images, reconstructions)


def save_half_backbone(path: str, net: lpips.Net = "vgg") -> None:
    """Write the published feature layers of VGG-16 in bfloat16 for `perceptual_weights`: half the size, for training.

    Raises WeightsError when they are not available.
    """
    from safetensors.torch import save_file

    from lactok.weights import load_tensors

    tensors = load_tensors(imagenet.BACKBONES[net])
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in tensors.items()}, path)


def mean_psnr(outputs: Tensor, images: Tensor) -> float:
    """PSNR in dB of outputs (N, 3, H, W), clamped to [0, 1], against images of that shape; mean over images.

    Of floats, not of 8-bit images: for a training log, not for a table. At most 100 dB an image.
    """
    errors = (outputs.clamp(0, 1) - images).square().mean((1, 2, 3))
    return (-10 * errors.clamp_min(1e-10).log10()).mean().item()
