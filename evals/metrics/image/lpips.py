"""LPIPS (Zhang et al. 2018), version 0.1, by the `lpips` package's own network and layers.

The package passes both images of each pair through the network; here a reference's normalised activations are kept as
its embedding, so that it is passed once however many images are scored against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from evals.metrics.base import Column, ImageMetric, require_side
from lactok import registry
from lactok.feature_extractors.lpips import SMALLEST, Net, sources
from lactok.interface import Item
from lactok.weights import WeightsSource

if TYPE_CHECKING:
    from lpips import LPIPS


class Lpips(ImageMetric):
    """LPIPS of each image; images are given to the network as x / 127.5 - 1, at their own size.

    net: the backbone. Memory: an embedding is all activations, at 1024x1024 about 43 MB an image with AlexNet and
    510 MB with VGG-16.
    """

    net: ClassVar[Net]

    def __init__(self, module: LPIPS) -> None:
        """module: from lactok.feature_extractors.lpips."""
        self.module = module.to(memory_format=torch.channels_last)

    @classmethod
    def weights(cls) -> tuple[WeightsSource, ...]:
        return sources(cls.net)

    @classmethod
    def build(cls, device: torch.device, settings: Mapping[str, Any]) -> Lpips:
        """With the published network."""
        return cls(registry.load("features", f"lpips-{cls.net}")(device))

    @torch.no_grad()
    def embed(self, images: Tensor, items: Sequence[Item]) -> tuple[Tensor, ...]:
        """Activations of each stage, (B, C, h, w) normalised to unit length over C. images: uint8 (B, 3, H, W).

        Raises ValueError for images of which a stage would have no pixel left.
        """
        from lpips import normalize_tensor

        require_side(images, SMALLEST[self.module.pnet_type], f"LPIPS-{self.module.pnet_type}")
        pixels = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return tuple(normalize_tensor(stage) for stage in self.module.net(self.module.scaling_layer(pixels)))

    @torch.no_grad()
    def score(
        self, reference: tuple[Tensor, ...], embedding: tuple[Tensor, ...], items: Sequence[Item]
    ) -> dict[str, Tensor]:
        """The column's values, float64 (B,). Raises ValueError when the images' shapes differ."""
        if reference[0].shape != embedding[0].shape:
            raise ValueError(
                f"activations of shapes {tuple(reference[0].shape)} and {tuple(embedding[0].shape)}: "
                "the images differ in number or size"
            )
        return {self.columns[0].name: self.stages(reference, embedding).sum(dim=1)}

    @torch.no_grad()
    def stages(self, reference: tuple[Tensor, ...], embedding: tuple[Tensor, ...]) -> Tensor:
        """What each stage of the network adds: float64 (B, stages)."""
        layers = zip(self.module.lins, reference, embedding, strict=True)
        return torch.stack([lin((a - b).square_()).double().mean(dim=(1, 2, 3)) for lin, a, b in layers], dim=1)


class LpipsAlex(Lpips):
    """LPIPS with AlexNet."""

    name = "lpips-alex"
    summary = "LPIPS 0.1, AlexNet"
    net = "alex"
    shares_network_with = ("lpips-alex", "lpips")
    columns = (Column("LPIPS-alex", "lower", digits=4, note="lpips 0.1, AlexNet", blind_to=("brighter",)),)


class LpipsVgg(Lpips):
    """LPIPS with VGG-16."""

    name = "lpips-vgg"
    summary = "LPIPS 0.1, VGG-16"
    net = "vgg"
    shares_network_with = ("lpips-vgg", "lpips")
    columns = (Column("LPIPS-vgg", "lower", digits=4, note="lpips 0.1, VGG-16", blind_to=("brighter",)),)
