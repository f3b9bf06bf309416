"""Colour drift by hue: which colours a tokenizer gets wrong, and whether it greys them.

The cells and their mean colours are those of `colour`. A cell belongs to the hue of its reference colour in CIELAB, or
to grey where its chroma is below GREY. A hue's figure is the mean over the cells of all images together, so that an
image without a hue says nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from evals.metrics.base import Column
from evals.metrics.image.cielab import ciede2000
from evals.metrics.image.colour import CellColours, Colour
from lactok.interface import Item

# Where each hue begins, in degrees of CIELAB: sRGB's six pure hues have 40, 103, 136, 196, 306 and 328, and each border
# lies in the middle of two.
HUES = {"red": 4, "yellow": 71.5, "green": 119.5, "cyan": 166, "blue": 251, "magenta": 317}
# Chroma below which a colour counts as grey.
GREY = 8.0
NAMES = (*HUES, "grey")


class HueDrift(Colour):
    """CIEDE2000 by hue of the reference, and the change of chroma."""

    name = "hue-drift"
    summary = "colour drift by hue of the reference, and change of chroma, of the same cells as colour"
    columns: ClassVar[tuple[Column, ...]] = (
        *(
            Column(
                f"drift-{name}",
                "lower",
                digits=2,
                note=f"colour-de00 of the cells that are {name} in the reference",
                mean=False,
                shown=False,
                blind_to=("blur", "shift"),
            )
            for name in NAMES
        ),
        Column(
            "chroma-dc",
            "zero",
            digits=2,
            note="chroma of the image less the reference's, cells that are not grey; below 0: greyed",
            mean=False,
            shown=False,
            blind_to=("blur", "shift", "banding"),
        ),
    )

    def score(self, reference: CellColours, embedding: CellColours, items: Sequence[Item]) -> dict[str, Tensor]:
        """By hue the number of cells and the sum of their differences, and the sum of changes of chroma; float64 (B,).

        Raises ValueError when shapes differ.
        """
        if reference.shape != embedding.shape:
            raise ValueError(f"images of shapes {reference.shape} and {embedding.shape}")
        difference = ciede2000(reference.lab, embedding.lab)
        chroma = [torch.hypot(colours.lab[..., 1], colours.lab[..., 2]) for colours in (reference, embedding)]
        hue = _hues(reference.lab, chroma[0])
        found = {}
        for number, name in enumerate(NAMES):
            inside = (hue == number).double()
            found[f"{name}-cells"] = inside.sum(dim=(1, 2))
            found[f"{name}-de00"] = (difference * inside).sum(dim=(1, 2))
        coloured = (hue < len(HUES)).double()
        return found | {"chroma-change": ((chroma[1] - chroma[0]) * coloured).sum(dim=(1, 2))}

    @classmethod
    def summarise(cls, values: Mapping[str, np.ndarray], items: Sequence[Item]) -> dict[str, float]:
        """NaN for a hue that no cell has."""
        cells = {name: values[f"{name}-cells"].sum() for name in NAMES}
        drift = {f"drift-{name}": _ratio(values[f"{name}-de00"].sum(), cells[name]) for name in NAMES}
        coloured = sum(cells[name] for name in HUES)
        return drift | {"chroma-dc": _ratio(values["chroma-change"].sum(), coloured)}


def _hues(lab: Tensor, chroma: Tensor) -> Tensor:
    """Place in NAMES of each colour (..., 3): int64 (...)."""
    angle = torch.rad2deg(torch.atan2(lab[..., 2], lab[..., 1])).remainder(360)
    borders = torch.tensor(list(HUES.values()), dtype=angle.dtype, device=angle.device)
    place = (torch.bucketize(angle, borders, right=True) - 1).remainder(len(HUES))  # below the first: the last, magenta
    return torch.where(chroma < GREY, len(HUES), place)


def _ratio(total: float, count: float) -> float:
    return float(total / count) if count else math.nan
