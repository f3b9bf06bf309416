"""What a run shows and measures: fixed crops of validation images, and the sheet that compares them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lactok.data.batches import CropRange, Pictures, centre_crop, noise_seed, random_crop, rng, to_tensor
from lactok.files import write_atomically

SHOWN = 16
"""Validation images in a sample sheet, in bands of BAND."""
BAND = 8
CROPS_MEASURED = 4
"""Fixed crops of each validation image that `Recipe.measure` sees."""


def fixed_seeds(count: int) -> list[int]:
    """Of the noise of validation images, the same at every step."""
    return [noise_seed(0, 0, i) for i in range(count)]


def shown_images(images: Pictures, validation: Sequence[int], size: int, crops: CropRange) -> Tensor:
    """The first SHOWN of them, their middles: float32 (N, 3, size, size) in [0, 1]."""
    side = round(math.sqrt(crops.smallest * crops.largest))
    return to_tensor([centre_crop(images[i], size, side) for i in validation[:SHOWN]])


def measured_images(images: Pictures, validation: Sequence[int], size: int, crops: CropRange) -> Tensor:
    """CROPS_MEASURED crops of each, the same at every step: float32 (N, 3, size, size) in [0, 1]."""
    return to_tensor(
        [random_crop(images[i], size, crops, rng(0, 0, i, k)) for i in validation for k in range(CROPS_MEASURED)]
    )


def save_sheet(originals: Tensor, reconstructions: Tensor, path: Path) -> None:
    """A PNG with bands of originals above their reconstructions, small images enlarged by whole pixels."""
    bands = []
    for start in range(0, len(originals), BAND):
        for images in (originals, reconstructions):
            row = images[start : start + BAND]
            row = torch.cat([row, row.new_ones(BAND - len(row), *row.shape[1:])])
            bands.append(torch.cat(list(row), dim=2))
    pixels = (torch.cat(bands, dim=1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    factor = max(1, 128 // originals.shape[-1])
    png = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(pixels, factor, 0), factor, 1)).save(png, "png")
    write_atomically(path, png.getvalue())
