"""The network of DISTS (Ding et al. 2020): VGG-16 with L2 poolings, and the learned weights alpha and beta.

Alpha and beta are those of the distribution `DISTS-pytorch` 0.1 (MIT), the authors' own, which is read and never
imported: it would fetch VGG-16 by itself. VGG-16 is torchvision's, as for LPIPS.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lactok.feature_extractors.imagenet import BACKBONES
from lactok.weights import DistributionWeights, WeightsError, WeightsSource, load_tensors

ALPHA_BETA = DistributionWeights(
    "DISTS-pytorch",
    "DISTS_pytorch/weights.pt",
    "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
    "DISTS-pytorch==0.1",
)
# torchvision's `features` of each stage: convolutions (each with a ReLU) between two poolings.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
CHANNELS = (3, *WIDTHS)
"""Of the image itself, then of each stage."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of ImageNet
HANN = (0.5, 1.0, 0.5)  # the inner points of a 5-point Hann window
EPSILON = 1e-12  # under the root, as in the package


def sources() -> tuple[WeightsSource, ...]:
    """The files that `load` reads: VGG-16, alpha and beta."""
    return BACKBONES["vgg"], ALPHA_BETA


class L2Pooling(nn.Module):
    """The root of the Hann-weighted mean of squares, stride 2, zero padding: (B, C, H, W) to half of it, rounded up."""

    window: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor(HANN)
        window = taps[:, None] * taps
        window = (window / window.sum()).expand(channels, 1, 3, 3)
        self.register_buffer("window", window.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        squares = F.conv2d(x.square(), self.window, stride=2, padding=1, groups=x.shape[1])
        return (squares + EPSILON).sqrt()


class Dists(nn.Module):
    """Frozen. alpha, beta: float32 (1475,), weights of the channels of CHANNELS, which sum to 1 together."""

    alpha: Tensor
    beta: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = 3
        for convolutions, width in zip(STAGES, WIDTHS, strict=True):
            layers: list[nn.Module] = [L2Pooling(before)] if stages else []
            for _ in convolutions:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha / total)
        self.register_buffer("beta", beta / total)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """The image itself and the map of each stage, (B, C, h, w) for C in CHANNELS. images: float32 in [0, 1]."""
        x = (images - self.mean) / self.std
        maps = [images]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def load(device: torch.device | str = "cpu") -> Dists:
    """The published network. Raises lactok.weights.MissingWeights when a file is not here and can't be fetched."""
    learned = load_tensors(ALPHA_BETA)
    return build(load_tensors(BACKBONES["vgg"]), learned["alpha"], learned["beta"], device)


def build(backbone: Mapping[str, Tensor], alpha: Tensor, beta: Tensor, device: torch.device | str = "cpu") -> Dists:
    """The network with given weights, in eval mode. backbone: VGG-16 under torchvision's names ("features.0.weight").

    alpha, beta: 1475 values each, in any shape. Raises WeightsError when a tensor lacks or has another shape.
    """
    for name, weights in (("alpha", alpha), ("beta", beta)):
        if weights.numel() != sum(CHANNELS):
            raise WeightsError(f"DISTS' {name} has {weights.numel()} values, expected {sum(CHANNELS)}")
    with torch.device("cpu"):
        module = Dists(alpha.flatten(), beta.flatten())
    convolutions = [layer for layer in module.stages.modules() if isinstance(layer, nn.Conv2d)]
    places = [place for stage in STAGES for place in stage]
    try:
        for place, layer in zip(places, convolutions, strict=True):
            layer.load_state_dict({part: backbone[f"features.{place}.{part}"] for part in ("weight", "bias")})
    except KeyError as error:
        raise WeightsError(f"these tensors are no VGG-16: {error} is missing") from error
    except RuntimeError as error:
        raise WeightsError(f"these tensors are no VGG-16: {error}") from error
    return module.eval().requires_grad_(False).to(device)
