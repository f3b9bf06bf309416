"""Shift of colour and of brightness: what is wrong with a reconstruction that is seen from afar.

An image is cut into 8x8 cells, and the sRGB values of a cell are averaged as they are, gamma-encoded: blurring and
resizing of pixel values, which every tokenizer's way to its native size and back does, keep this mean, so that detail
lost within a cell costs nothing. Means of linear light would read it as darkening, because light is convex in pixel
values. The mean colours go to CIELAB, where
- colour-de00 is the CIEDE2000 difference, mean over the cells;
- brightness-dl is L* of the image less L* of the reference, mean over the cells: above 0, too bright.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from evals.metrics.base import Column, ImageMetric
from evals.metrics.image.cielab import ciede2000, lab_of_linear, linear_light
from lactok.interface import Item

GRID = 8  # cells along each side


@dataclass(frozen=True)
class CellColours:
    """lab: L*a*b* of the cells' means, float64 (B, 8, 8, 3), rows first. shape: of the images, (B, 3, H, W)."""

    lab: Tensor
    shape: tuple[int, ...]


class Colour(ImageMetric):
    """Colour and brightness shift between 8x8-cell means."""

    name = "colour"
    summary = "colour and brightness shift between mean colours of 8x8 cells"
    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "colour-de00",
            "lower",
            digits=2,
            note="CIEDE2000 between mean colours of 8x8 cells; mean over cells",
            blind_to=("blur", "shift"),
        ),
        Column(
            "brightness-dl",
            "zero",
            digits=2,
            note="L* of the image less the reference's, of the same cells; above 0: too bright",
            shown=False,
            blind_to=("shuffled", "cast", "blur", "shift", "banding"),
        ),
    )

    def embed(self, images: Tensor, items: Sequence[Item]) -> CellColours:
        """The cells' colours. Cell i of a side of n pixels spans floor(i n / 8) to floor((i + 1) n / 8).

        Raises ValueError for images that have less than a pixel a cell.
        """
        height, width = images.shape[2:]
        if min(height, width) < GRID:
            raise ValueError(f"images of {height}x{width} pixels; {GRID}x{GRID} cells need {GRID}x{GRID} or more")
        rows, columns = _edges(height), _edges(width)
        strips = [images[:, :, top:bottom].sum(dim=2, dtype=torch.int32) for top, bottom in pairwise(rows)]
        before = torch.nn.functional.pad(torch.stack(strips, dim=2).cumsum(dim=-1), (1, 0))  # (B, 3, 8, W + 1)
        sums = before[..., columns].diff(dim=-1)
        pixels = torch.outer(*(torch.tensor(e, device=images.device).diff() for e in (rows, columns)))
        means = sums.double() / (255 * pixels)
        return CellColours(lab_of_linear(linear_light(means.movedim(1, -1))), tuple(images.shape))

    def score(self, reference: CellColours, embedding: CellColours, items: Sequence[Item]) -> dict[str, Tensor]:
        """Both columns, float64 (B,). Raises ValueError when shapes differ."""
        a, b = reference, embedding
        if a.shape != b.shape:
            raise ValueError(f"images of shapes {a.shape} and {b.shape}")
        return {
            "colour-de00": ciede2000(a.lab, b.lab).mean(dim=(1, 2)),
            "brightness-dl": (b.lab[..., 0] - a.lab[..., 0]).mean(dim=(1, 2)),
        }


def _edges(length: int) -> list[int]:
    """Where cells begin and end along a side: 9 numbers."""
    return [i * length // GRID for i in range(GRID + 1)]
