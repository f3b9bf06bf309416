"""Images as callers hold them (PIL images, NumPy arrays, tensors) to the two forms that are worked with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lactok.images.decode import upright_rgb

if TYPE_CHECKING:
    from torch import Tensor

EXPECTED = (
    "a PIL image, a NumPy array (H, W, 3) or (H, W) of uint8 or of float in [0, 1], or a tensor (3, H, W) of uint8 or "
    "of float in [0, 1]"
)


def separate(images: Any) -> list[Any]:
    """One image, a batch (B, ...) or an iterable of images as a list of single images. Raises ValueError for none."""
    if isinstance(images, Image.Image):
        return [images]
    if hasattr(images, "ndim") and hasattr(images, "shape"):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise ValueError(f"images are {type(images).__name__}: expected {EXPECTED}, or a list of such")
    found = list(images)
    if not found:
        raise ValueError("no image was given")
    return found


def pixels(image: Any) -> np.ndarray:
    """An image as uint8 (H, W, 3) RGB; floats are rounded half up. Raises ValueError for what is no image."""
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    values = _rgb(image)
    return values if values.dtype == np.uint8 else np.floor(values * 255 + 0.5).astype(np.uint8)


def floats(image: Any) -> Tensor:
    """An image as float32 (3, H, W), RGB in [0, 1], on the CPU. Raises ValueError for what is no image."""
    import torch

    values = upright_rgb(image) if isinstance(image, Image.Image) else _rgb(image)
    tensor = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)
    return tensor.float() / 255 if values.dtype == np.uint8 else tensor.contiguous()


def _rgb(image: Any) -> np.ndarray:
    """uint8, or float32 in [0, 1], (H, W, 3)."""
    if isinstance(image, np.ndarray):
        values = image
    elif hasattr(image, "detach"):  # a tensor; torch need not be imported to know
        values = image.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
        if values.ndim == 3:
            values = np.moveaxis(values, 0, 2)
    else:
        raise ValueError(f"an image is {type(image).__name__}: expected {EXPECTED}")
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in values.shape:
        raise ValueError(f"an image has shape {tuple(image.shape)}: expected {EXPECTED}")
    if values.dtype != np.uint8:
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"an image is {values.dtype}: expected {EXPECTED}")
        values = values.astype(np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            seen = f"{float(values.min()):.3g} to {float(values.max()):.3g}"
            raise ValueError(f"an image has values from {seen}: expected floats in [0, 1] (x / 255, or (x + 1) / 2)")
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values
