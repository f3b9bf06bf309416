"""Features for rFID and KID: the 2048-d pooled features of torch-fidelity's Inception-v3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evals.metrics.base import ImageMetric
from lactok import registry
from lactok.feature_extractors import inception
from lactok.interface import Item
from lactok.weights import WeightsSource

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class Inception(ImageMetric):
    """Inception-v3 features; no per-image column. The network resizes to 299x299 as TensorFlow 1 did."""

    name = "inception"
    summary = "features of torch-fidelity's Inception-v3, for rfid and kid"
    feature_dim = 2048

    def __init__(self, module: FeatureExtractorInceptionV3) -> None:
        """module: from lactok.feature_extractors.inception, with the features ("2048",)."""
        self.module = module.to(memory_format=torch.channels_last)  # a third faster on CPUs

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        return (inception.WEIGHTS,)

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> Inception:
        """With the published network."""
        return cls(registry.load("features", "inception-2048")(device))

    @torch.no_grad()
    def embed(self, images: Tensor, items: Sequence[Item]) -> Tensor:
        """The features. images: uint8 (B, 3, H, W)."""
        return self.module(images)[0]

    def features(self, embedding: Tensor) -> Tensor:
        return embedding
