"""LPIPS (Zhang et al. 2018), version 0.1, by the `lpips` package's own network and layers.

The package passes both pictures of each pair through the network; here an original's normalised activations are kept
in its view, so that it is passed once however many reconstructions are compared with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evals.metrics.base import Column, Probe

if TYPE_CHECKING:
    from lpips import LPIPS


class Lpips(Probe):
    """LPIPS of each picture; pictures are given to the network as x / 127.5 - 1, at their own size.

    Memory: a view keeps all activations, at 1024x1024 about 43 MB a picture with AlexNet and 510 MB with VGG-16.
    """

    def __init__(self, module: LPIPS) -> None:
        """module: from lactok.features.lpips."""
        self.module = module.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def view(self, images: Tensor) -> tuple[Tensor, ...]:
        """Activations of each stage, (B, C, h, w) normalised to unit length over C. images: uint8 (B, 3, H, W)."""
        from lpips import normalize_tensor

        pixels = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return tuple(normalize_tensor(stage) for stage in self.module.net(self.module.scaling_layer(pixels)))

    @torch.no_grad()
    def compare(self, originals: tuple[Tensor, ...], reconstructions: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The column's values, float64 (B,). Raises ValueError when the pictures' shapes differ."""
        if originals[0].shape != reconstructions[0].shape:
            raise ValueError(
                f"activations of shapes {tuple(originals[0].shape)} and {tuple(reconstructions[0].shape)}: "
                "the pictures differ in number or size"
            )
        return {self.columns[0].name: self.stages(originals, reconstructions).sum(dim=1)}

    @torch.no_grad()
    def stages(self, originals: tuple[Tensor, ...], reconstructions: tuple[Tensor, ...]) -> Tensor:
        """What each stage of the network adds: float64 (B, stages)."""
        layers = zip(self.module.lins, originals, reconstructions, strict=True)
        return torch.stack([lin((a - b).square_()).double().mean(dim=(1, 2, 3)) for lin, a, b in layers], dim=1)


class LpipsAlex(Lpips):
    """LPIPS with AlexNet."""

    name = "lpips-alex"
    columns = (Column("LPIPS-alex", "lower", digits=4, note="lpips 0.1, AlexNet"),)


class LpipsVgg(Lpips):
    """LPIPS with VGG-16."""

    name = "lpips-vgg"
    columns = (Column("LPIPS-vgg", "lower", digits=4, note="lpips 0.1, VGG-16"),)
