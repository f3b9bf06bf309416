"""What GenEval's detector is given: mmdetection's test-time resize, normalisation and padding.

The resize is OpenCV's bilinear one of 8-bit images, in its own fixed-point arithmetic: 11 bits of weight, no
antialiasing. It gives the same bytes on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGER, SHORTER = 1333, 800
"""Pixels within which an image's longer and shorter side are fitted (mmdetection's img_scale of this model)."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of RGB values 0 to 255 (mmdetection's img_norm_cfg of this model)."""
MULTIPLE = 32
"""Sides are padded with zeros, at the right and below, to a multiple of this."""

_ONE = 2048  # OpenCV's INTER_RESIZE_COEF_SCALE


def fitted_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the resized image: as large as LONGER and SHORTER allow; a small image is enlarged."""
    scale = min(LONGER / max(height, width), SHORTER / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (B, C, H, W) to `size`, (height, width), as cv2.resize does with INTER_LINEAR."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    if (height, width) == (2 * size[0], 2 * size[1]):  # OpenCV takes the mean of four pixels then
        quarters = images.int().unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).sum(dim=(-3, -1))
        return ((quarters + 2) >> 2).to(torch.uint8)
    (left, right), (u0, u1) = _weights(width, size[1], True, images.device)
    (above, below), (v0, v1) = _weights(height, size[0], False, images.device)
    rows = images.int()
    rows = rows[..., left] * u0 + rows[..., right] * u1
    top, low = rows[..., above, :] >> 4, rows[..., below, :] >> 4
    mixed = ((v0[:, None] * top) >> 16) + ((v1[:, None] * low) >> 16)
    return ((mixed + 2) >> 2).clamp(0, 255).to(torch.uint8)


def _weights(
    source: int, target: int, inside: bool, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two source pixels of each target pixel and their weights, which sum to _ONE.

    inside: whether a place beyond the first or last pixel becomes that pixel's (OpenCV's columns, not its rows).
    """
    places = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).float()
    first = places.floor()
    share = places - first
    if inside:
        share = torch.where((first < 0) | (first >= source - 1), 0.0, share)
    pair = [(first.int() + step).clamp(0, source - 1).to(device) for step in (0, 1)]
    one, two = ((weight * _ONE).round().int().to(device) for weight in (1 - share, share))
    return (pair[0], pair[1]), (one, two)


def prepared(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The network's input, float32 (B, 3, H', W') padded, and the size (height, width) of the image inside it.

    images: uint8 (B, 3, H, W) RGB.
    """
    size = fitted_size(*images.shape[-2:])
    pixels = resized(images, size).float()
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    padding = (0, -size[1] % MULTIPLE, 0, -size[0] % MULTIPLE)
    return torch.nn.functional.pad((pixels - mean) / std, padding), size
